"""Killed at any instant, a run ends after `resume` as if it had never been killed.

Before each kill the cache is emptied, so that images are encoded again. What a run said last before
it was killed tells where the kill fell; `pytest -s` prints how often it fell where.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.training.runs import new_run, same
from trainer.run import Run, State
from trainer.training.attempt import attempt

CONFIGURATIONS: tuple[dict[str, Any], ...] = (
    {},
    {"training__checkpoint_every_steps": 1, "adapter__ema_decay": 0.9},
    {"optimizer__name": "prodigy", "optimizer__learning_rate": 1.0, "adapter__dropout": 0.2},
    {"adapter__text_encoder": False, "adapter__targets": "linear-conv",
     "samples__every_steps": 1, "samples__steps": 6},
    {"adapter__text_encoder_stop": 0.5, "dataset__class_prompt": "a picture",
     "dataset__class_images": 1, "adapter__rank_dropout": 0.3},
    {"adapter__kind": "lokr", "optimizer__name": "schedule_free", "validation__every_steps": 1,
     "adapter__module_dropout": 0.2},
)  # fmt: skip
IN_CI, IN_ALL = 12, 120
FELL: Counter[str] = Counter()


class Uninterrupted:
    """The run of each configuration that nothing happened to, and how long it took."""

    def __init__(self, folder: Path, base: Path, dataset: Path) -> None:
        self._folder, self._base, self._dataset = folder, base, dataset
        self._done: dict[int, tuple[Run, float]] = {}
        self._numbers = itertools.count()

    def new(self, name: str, configuration: int) -> Run:
        changes = CONFIGURATIONS[configuration]
        folder = self._folder / f"{name}-{configuration}-{next(self._numbers)}"
        return new_run(folder, self._base, self._dataset, **changes)

    def __getitem__(self, configuration: int) -> tuple[Run, float]:
        if configuration not in self._done:
            run = self.new("whole", configuration)
            attempt(run)
            # Timed once more, as those that are killed: the first run warms up.
            timed = self.new("timed", configuration)
            began = time.monotonic()
            process = _forked(timed)
            process.join()
            assert process.exitcode == 0
            self._done[configuration] = run, time.monotonic() - began
            assert same(run, timed)
        return self._done[configuration]


@pytest.fixture(scope="module")
def uninterrupted(
    small_base: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Uninterrupted]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked process cannot use its parent's threads
    patch = pytest.MonkeyPatch()
    patch.setenv("ATELIER_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield Uninterrupted(tmp_path_factory.mktemp("kills"), small_base, photos)
    patch.undo()
    torch.set_num_threads(threads)
    print(
        "\nKilled after:", *(f"{count} x {where}" for where, count in FELL.most_common()), sep="\n"
    )


def _forked(run: Run) -> ForkProcess:
    """A trainer at work on a run, with nothing in the cache. Forked, so that the libraries are
    loaded and every instant falls into our own work."""
    shutil.rmtree(os.environ["ATELIER_CACHE"], ignore_errors=True)
    process = multiprocessing.get_context("fork").Process(target=attempt, args=(run,), daemon=True)
    process.start()
    return process


def _kill(uninterrupted: Uninterrupted, number: int) -> None:
    configuration = number % len(CONFIGURATIONS)
    whole, seconds = uninterrupted[configuration]
    killed = uninterrupted.new("killed", configuration)
    # A random event is waited for, then a part of the time that passes between two: on a machine
    # of any speed, and however busy, that is an instant before the end.
    draws, events = random.Random(number), len(whole.read_events()[0])
    awaited, rest = draws.randrange(events), draws.uniform(0, seconds / events)
    process = _forked(killed)
    try:
        while process.is_alive() and len(killed.read_events()[0]) < awaited:
            process.join(0.002)
        process.join(rest)
    finally:
        process.kill()
        process.join()
    said = killed.read_events()[0]
    FELL[said[-1].type if said else "nothing"] += 1
    assert killed.status().state in {State.DRAFT, State.INTERRUPTED, State.FINISHED}
    if killed.status().state is not State.FINISHED:
        attempt(killed)
    assert killed.status().state is State.FINISHED
    assert same(whole, killed)
    assert not list(killed.path.rglob("*.partial"))


@pytest.mark.parametrize("number", range(IN_CI))
def test_a_kill_at_a_random_instant(uninterrupted: Uninterrupted, number: int) -> None:
    _kill(uninterrupted, number)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(IN_CI, IN_ALL))
def test_many_more_kills(uninterrupted: Uninterrupted, number: int) -> None:
    _kill(uninterrupted, number)
