"""How long it takes from starting the trainer to its first optimizer step: `python -m bench.start`.

Twelve images, the embedded base. The first start is colder than the others: its files come from the
disk. Prints seconds for each stage, so that one sees where they go.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from trainer import events
from trainer.run import Run

STARTS = 3


def main() -> int:
    print("start    imports  base   latents  first step  in all")
    for number in range(STARTS):
        with tempfile.TemporaryDirectory() as folder:
            print(f"{number + 1:5}  {_measure(Run(Path(folder) / 'run'))}")
    return 0


def _measure(run: Run) -> str:
    command = [sys.executable, "-m", "trainer", "train", "--run", str(run.path)]
    command += ["--preset", "embedded-character", "--dataset.folder", "samples/character"]
    command += ["--training.steps", "1", "--validation.timesteps", "1"]
    began = time.time()
    subprocess.run(command, check=True, capture_output=True)
    history, _ = run.read_events()
    loading, encoding = _first(history, events.Preparing), _last(history, events.Preparing)
    ready, step = _first(history, events.Ready), _first(history, events.Step)
    first_encoded = next(
        event.time
        for event in history
        if isinstance(event, events.Preparing) and event.stage.startswith("Encoding")
    )
    parts = (
        loading.time - began,
        first_encoded - loading.time,
        encoding.time - first_encoded,
        step.time - ready.time,
        step.time - began,
    )
    return "  ".join(f"{seconds:7.2f}" for seconds in parts)


def _first(history: list[events.AnyEvent], kind: type[events.Event]) -> events.Event:
    return next(event for event in history if isinstance(event, kind))


def _last(history: list[events.AnyEvent], kind: type[events.Event]) -> events.Event:
    return next(event for event in reversed(history) if isinstance(event, kind))


if __name__ == "__main__":
    sys.exit(main())
