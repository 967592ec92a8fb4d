"""How long it takes from starting the trainer to its first optimizer step: `python -m bench.start`.

Twelve images, the embedded base, the preset as it is. The first start is cold: nothing of the
images and captions is in the cache, and the program's files come from the disk, if the page cache
was dropped before (`--drop`, for root, on Linux). The others are warm. Prints seconds for each
stage, so that one sees where they go; at most 8 cold and 6 warm are wanted.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from trainer import events
from trainer.run import Run

STARTS = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--drop", action="store_true", help="drop the system's page cache first")
    if parser.parse_args().drop:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
    print("start    imports     base  latents    first step    in all")
    with tempfile.TemporaryDirectory() as folder:
        for number in range(STARTS):
            run = Run(Path(folder) / str(number))
            print(f"{'cold' if number == 0 else 'warm'}     {_measure(run, Path(folder))}")
    return 0


def _measure(run: Run, cache: Path) -> str:
    """Starts a run and stops it after its first step."""
    command = [sys.executable, "-m", "trainer", "train", "--run", str(run.path)]
    command += ["--preset", "embedded-character", "--dataset.folder", "samples/character"]
    began = time.time()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=os.environ | {"ATELIER_CACHE": str(cache / "cache")},
    )  # fmt: skip
    history: list[events.AnyEvent] = []
    while not any(isinstance(event, events.Step) for event in history):
        if process.poll() is not None:
            sys.exit(f"the trainer ended with {process.returncode}; see {run.log_file}")
        time.sleep(0.05)
        history, _ = run.read_events()
    process.kill()
    process.wait()
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
