"""Killed at any instant, a run ends after `resume` as if it had never been killed."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Iterator
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
    {"optimizer__name": "prodigy", "optimizer__learning_rate": 1.0},
    {"adapter__text_encoder": False, "adapter__targets": "linear-conv"},
)
IN_CI, IN_ALL = 12, 100


class Uninterrupted:
    """The run of each configuration that nothing happened to, and how long it took."""

    def __init__(self, folder: Path, base: Path, dataset: Path) -> None:
        self._folder, self._base, self._dataset = folder, base, dataset
        self._done: dict[int, tuple[Run, float]] = {}

    def new(self, name: str, configuration: int) -> Run:
        changes = CONFIGURATIONS[configuration]
        return new_run(self._folder / name, self._base, self._dataset, **changes)

    def __getitem__(self, configuration: int) -> tuple[Run, float]:
        if configuration not in self._done:
            run = self.new(f"whole-{configuration}", configuration)
            began = time.monotonic()
            attempt(run)
            self._done[configuration] = run, time.monotonic() - began
        return self._done[configuration]


@pytest.fixture(scope="module")
def uninterrupted(
    small_base: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Uninterrupted]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked process cannot use its parent's threads
    yield Uninterrupted(tmp_path_factory.mktemp("kills"), small_base, photos)
    torch.set_num_threads(threads)


def _kill(uninterrupted: Uninterrupted, number: int) -> None:
    configuration = number % len(CONFIGURATIONS)
    whole, seconds = uninterrupted[configuration]
    killed = uninterrupted.new(f"killed-{number}", configuration)
    # Forked, so that the libraries are loaded and every instant falls into our own work.
    process = multiprocessing.get_context("fork").Process(target=attempt, args=(killed,))
    process.start()
    process.join(random.Random(number).uniform(0, 1.1 * seconds))
    process.kill()
    process.join()
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
