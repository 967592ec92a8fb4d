"""Our default recipe against the peers', on the same images and with the same time.

    python -m bench.quality [--steps 200] [--every 10] [--work DIR]

Both train on the embedded base through the trainer's own entry point: same twelve pictures, same
ones held out, same batch and rank, same number of steps. Only the recipe differs: ours is the
preset; theirs is what diffusers' script, kohya's and ai-toolkit begin with. Prints the held-out
loss over time, and when ours reaches what theirs ends with; the aim is half the time or less.

Time is that of optimizer steps alone, measurements and checkpoints taken out. On a busy machine
compare by steps: a step costs the same in both.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from trainer import events
from trainer.run import Run

OURS: dict[str, object] = {}
PEERS: dict[str, object] = {
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 1e-4,
    "optimizer.text_encoder_learning_rate": 1e-4,
    "optimizer.schedule": "constant",
    "optimizer.warmup": 0,
    "loss.weighting": "uniform",
    "training.timesteps": "uniform",
    "dataset.caption_dropout": 0,
}
AIM = 0.5


@dataclass(frozen=True)
class Point:
    """The held-out loss after some steps, and the seconds that those steps took."""

    step: int
    seconds: float
    loss: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--work", type=Path, help="keep the runs here")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = asked.work or Path(folder)
        curves = {
            name: train(Run(work / name), asked.steps, asked.every, recipe)
            for name, recipe in (("peers", PEERS), ("ours", OURS))
        }
    print(f"{'step':>5}  {'peers s':>8} {'loss':>7}   {'ours s':>8} {'loss':>7}")
    for theirs, own in zip(curves["peers"], curves["ours"], strict=True):
        print(
            f"{own.step:5}  {theirs.seconds:8.1f} {theirs.loss:.5f}   "
            f"{own.seconds:8.1f} {own.loss:.5f}"
        )
    return _judge(curves["peers"], curves["ours"])


def train(run: Run, steps: int, every: int, recipe: dict[str, object]) -> list[Point]:
    """Trains with the preset, laid over by a recipe; the held-out loss as it went."""
    values = {
        "dataset.folder": "samples/character",
        "training.steps": steps,
        "training.checkpoint_every_steps": steps,
        "validation.every_steps": every,
        "validation.timesteps": 16,
        **recipe,
    }
    command = [sys.executable, "-m", "trainer", "train", "--run", str(run.path)]
    command += ["--preset", "embedded-character"]
    command += [part for name, value in values.items() for part in (f"--{name}", str(value))]
    subprocess.run(command, check=True, capture_output=True)
    return curve(run.read_events()[0])


def curve(said: list[events.AnyEvent]) -> list[Point]:
    """The held-out losses of a run against the time that its steps alone had taken by then."""
    ready = next(event.time for event in said if isinstance(event, events.Ready))
    aside, points = 0.0, []
    for event in said:
        if isinstance(event, events.Validated | events.Sampled | events.CheckpointSaved):
            aside += event.seconds
        if isinstance(event, events.Validated) and event.held_out is not None:
            spent = 0.0 if event.step == 0 else event.time - ready - aside
            points.append(Point(event.step, spent, event.held_out))
    return points


def _judge(peers: list[Point], ours: list[Point]) -> int:
    last = peers[-1]
    reached = next((point for point in ours if point.loss <= last.loss), None)
    start = ours[0].loss
    print(
        f"\nPeers end at {last.loss:.5f}, {1 - last.loss / start:.1%} below the base's {start:.5f}."
    )
    if reached is None:
        print("Ours never gets there.")
        return 1
    steps, seconds = reached.step / last.step, reached.seconds / last.seconds
    print(
        f"Ours is there after {reached.step} of {last.step} steps ({steps:.0%}), "
        f"{reached.seconds:.1f} of {last.seconds:.1f} s ({seconds:.0%}); "
        f"the aim is {AIM:.0%} or less."
    )
    best = min(ours, key=lambda point: point.loss)
    print(
        f"Ours at its best: {best.loss:.5f} at step {best.step}, {1 - best.loss / start:.1%} below."
    )
    return int(steps > AIM)


if __name__ == "__main__":
    sys.exit(main())
