"""What a run was said to take beside what it took: `python -m bench.forecast [--steps 100]`.

Whole runs by the trainer's own entry point, on the embedded base and on one with Stable Diffusion
1.5's blocks, a fifth as wide: loading, steps, measurements, samples, checkpoints, the end. The aim
is 15 % of the clock on the wall. The first forecast counts, and another program can spoil it; so
processor time is printed, too.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import tiny
from trainer import events
from trainer.run import Run

AIM = 0.15
WIDTHS = (64, 128, 256, 256)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    steps = parser.parse_args().steps
    print("base        forecast after    forecast        took    processor   forecast / took")
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        small = tiny.stable_diffusion(Path(folder) / "base", widths=WIDTHS)
        for name, preset, changes in (
            ("embedded", "embedded-character", []),
            ("SD 1.5", "sd15-character", ["--base.model", str(small), "--samples.steps", "8"]),
        ):
            ratio = _measure(name, preset, steps, Path(folder) / preset, changes)
            wrong += abs(ratio - 1) > AIM
    return int(wrong > 0)


def _measure(name: str, preset: str, steps: int, folder: Path, changes: list[str]) -> float:
    """Trains, prints a line, and returns what was said over what it took."""
    command = [sys.executable, "-m", "trainer", "train", "--run", str(folder), "--preset", preset]
    command += ["--dataset.folder", "samples/character", "--training.steps", str(steps)]
    command += ["--samples.prompts", "pip the creature", "--dataset.resolution"]
    command += ["64" if preset.startswith("embedded") else "128", *changes]
    for part in ("validation", "samples", "training.checkpoint"):
        separator = "_" if part.startswith("training") else "."
        command += [f"--{part}{separator}every_steps", str(steps // 3)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = Run(folder)
    said = run.read_events()[0]
    told = next(event for event in said if isinstance(event, events.Forecast))
    began = next(event.time for event in said if isinstance(event, events.Started))
    took = json.loads(run.report_file.read_text())["seconds"]
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    ratio = told.total_seconds / took
    print(
        f"{name:10}  {told.time - began:12.1f} s  {told.total_seconds:8.1f} s  {took:8.1f} s  "
        f"{processor:9.1f} s   {ratio:.2f}",
        flush=True,
    )
    return ratio


if __name__ == "__main__":
    sys.exit(main())
