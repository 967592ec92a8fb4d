"""What stands in for slow things in tests: a trainer, a worker, runs, datasets; and waiting."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from trainer.run import Run
from trainer.settings_file import parse

TRAINER = (sys.executable, "-m", "tests.app.fake_trainer")
WORKER = (sys.executable, "-m", "tests.app.fake_worker")
TOOLS = (sys.executable, "-m", "tests.app.fake_tools")
_numbers = itertools.count(1)


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Waits until `condition()` is true, and fails if it does not become so in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.01)


def new_run(folder: Path, name: str = "works", steps: int = 30) -> str:
    """Creates a run directory. The fake trainer goes by its name."""
    id = f"{name}-{next(_numbers)}"
    Run(folder / id).create(
        parse(
            {
                "dataset": {"folder": "unused"},
                "training": {"steps": steps},
                "samples": {"prompts": ["pip at night", "pip by day"]},
                "output": {"name": name},
            }
        )
    )
    return id


def add_dataset(folder: Path, name: str, images: int = 3) -> Path:
    """A dataset of flat colours, captioned but for the last."""
    home = folder / name
    home.mkdir(parents=True)
    for number in range(1, images + 1):
        shade = (number * 60 % 256, 90, 160)
        Image.new("RGB", (96, 64), shade).save(home / f"{number:04}.png")
        if number < images:
            (home / f"{number:04}.txt").write_text(f"pip the creature, picture {number}\n")
    return home
