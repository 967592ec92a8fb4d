"""A dataset that changes between two attempts at a run is noticed, and nothing held out leaks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.training.runs import new_run
from trainer import cli, events, states
from trainer.run import Run, State
from trainer.training.attempt import attempt
from trainer.training.contents import differences


def _notices(run: Run) -> list[str]:
    return [event.message for event in run.read_events()[0] if isinstance(event, events.Notice)]


def _held_out(run: Run) -> set[str]:
    place = states.newest(run.checkpoints)
    assert place is not None
    return set(json.loads((place / states.STATE).read_text())["extra"]["held_out"])


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.text("xy", max_size=1)))
def test_nothing_is_said_of_the_same_images(images: dict[str, str]) -> None:
    assert differences(images, dict(images)) == ""


def test_what_differs_is_named() -> None:
    before, now = {"a": "1", "b": "1", "c": "1"}, {"b": "2", "c": "1", "d": "1"}
    assert differences(before, now) == "added: d; removed: a; edited: b"


def test_a_changed_dataset_is_said_and_what_was_held_out_stays_so(
    small_base: Path, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    run = new_run(tmp_path / "run", small_base, folder, validation__held_out=2)

    def stop_after_three(event: events.Event) -> None:
        if isinstance(event, events.Validated) and event.step == 3:
            run.request("stop")

    assert attempt(run, stop_after_three) is State.STOPPED
    held_out = _held_out(run)
    assert len(held_out) == 2
    gone = folder / min(held_out)
    kept = [path for path in sorted(folder.glob("*.png")) if path.name not in held_out]
    gone.unlink()
    gone.with_suffix(".txt").unlink()
    kept[0].with_suffix(".txt").write_text("another caption")
    shutil.copy(kept[1], folder / "new.png")
    shutil.copy(kept[1].with_suffix(".txt"), folder / "new.txt")

    assert attempt(run) is State.FINISHED
    said = next(line for line in _notices(run) if "The dataset has changed" in line)
    assert f"(added: new.png; removed: {gone.name}; edited: {kept[0].name})" in said
    assert _held_out(run) == held_out - {gone.name}
    report = json.loads(run.report_file.read_text())
    assert [item["step"] for item in report["validations"]] == [0, 6]  # of the new images alone
    assert not any("exact to the bit" in line for line in _notices(run))


def test_a_folder_given_from_where_one_stands_is_the_same_folder_later(
    small_base: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    run = tmp_path / "run"
    short = ["--training.steps", "2", "--training.checkpoint_every_steps", "1"]
    short += ["--dataset.resolution", "64", "--validation.timesteps", "1"]
    command = ["train", "--run", str(run), "--base.model", str(small_base)]
    assert cli.run([*command, "--dataset.folder", photos.name, *short]) == 0
    monkeypatch.chdir(tmp_path)
    assert cli.run(["resume", str(run), "--training.steps", "3"]) == 0
    assert not any("has changed" in line for line in _notices(Run(run)))
    (first, second) = (e for e in Run(run).read_events()[0] if isinstance(e, events.Ready))
    assert first.held_out == second.held_out == 1
