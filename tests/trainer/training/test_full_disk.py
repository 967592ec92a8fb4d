"""A disk that is full for real: the run pauses, says so, goes on when there is room, or stops."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.app.fakes import until
from tests.trainer.training.runs import new_run, same
from trainer import events
from trainer.run import Run, State
from trainer.training import reporter
from trainer.training.attempt import attempt


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("this machine lets nobody mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def _fill(disk: Path) -> Path:
    """Takes all the room there is."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


def _fills_after(first: int, disk: Path) -> Callable[[events.Event], None]:
    def hear(event: events.Event) -> None:
        if isinstance(event, events.CheckpointSaved) and event.step == first:
            _fill(disk)

    return hear


def _meanwhile(run: Run, disk: Path, then: Callable[[], None], seen: list[str]) -> None:
    until(lambda: run.status().state is State.PAUSED)
    seen.append(run.status().message)
    then()


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporter, "_SECONDS_BETWEEN_TRIES", 0.02)


def test_the_run_pauses_visibly_and_goes_on_when_there_is_room(
    disk: Path, small_base: Path, photos: Path, tmp_path: Path, hurried: None
) -> None:
    whole = new_run(tmp_path / "whole", small_base, photos)
    attempt(whole)
    run, seen = new_run(disk / "run", small_base, photos), list[str]()
    make_room = threading.Thread(
        target=_meanwhile, args=(run, disk, (disk / "filler").unlink, seen)
    )
    make_room.start()
    assert attempt(run, _fills_after(2, disk)) is State.FINISHED
    make_room.join()
    assert "disk is full" in seen[0]
    assert same(whole, run)
    assert run.status().message == ""
    said = [type(event) for event in run.read_events()[0]]
    assert events.Paused in said
    assert events.Continued in said
    assert not list(run.path.rglob("*.partial"))


def test_a_stop_ends_the_wait_and_the_last_checkpoint_stands(
    disk: Path, small_base: Path, photos: Path, tmp_path: Path, hurried: None
) -> None:
    whole = new_run(tmp_path / "whole", small_base, photos)
    attempt(whole)
    run, seen = new_run(disk / "run", small_base, photos), list[str]()
    stop = threading.Thread(target=_meanwhile, args=(run, disk, lambda: run.request("stop"), seen))
    stop.start()
    assert attempt(run, _fills_after(2, disk)) is State.STOPPED
    stop.join()
    status = run.status()
    assert (status.state, status.step) == (State.STOPPED, 2)
    (disk / "filler").unlink()
    assert attempt(run) is State.FINISHED
    assert same(whole, run)
