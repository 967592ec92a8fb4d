"""A workshop with a fake trainer and a fake preview worker, and small datasets to put into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.workshop import Workshop
from tests.app.fakes import TOOLS, TRAINER, WORKER, add_dataset, new_run
from trainer.run import Run


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    fakes = {"trainer": TRAINER, "worker": WORKER, "tools": TOOLS}
    with Workshop.opened(tmp_path / "data", **fakes) as opened:
        yield opened
        for id in opened.jobs.ids():
            Run(opened.jobs.folder / id).request("stop")  # no fake trainer outlives its test


@pytest.fixture
def start(workshop: Workshop) -> Callable[..., str]:
    """Creates a run with the fake trainer's name for how it goes, and queues it."""

    def begin(name: str = "works", steps: int = 30) -> str:
        id = new_run(workshop.jobs.folder, name, steps)
        workshop.jobs.submit(id)
        return id

    return begin


@pytest.fixture
def dataset(workshop: Workshop) -> Path:
    """A dataset called `pips`: three images, of which the last has no caption."""
    return add_dataset(workshop.data / "datasets", "pips")
