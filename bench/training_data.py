"""What data costs a run: its start with a warm cache, its memory, and how long steps wait for it.

Each measurement is a process of its own, so that memory is that of one run. The base is the
embedded one at a small size; what is measured does not depend on it.

    python -m bench.training_data FOLDER     measures one folder, and prints JSON
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

BATCHES = 300
BATCH_SIZE = 4
STEP_SECONDS = 0.02
"""A step that is short; on a GPU, one of SD 1.5 at batch 4 takes several times as long."""


def measure(folder: Path) -> dict[str, float]:
    """Figures of a run on `folder`, in this process. The first one fills the cache."""
    from bench.data import peak_mib
    from trainer.data.batches import Batches
    from trainer.files import cache_folder
    from trainer.model.load import load
    from trainer.settings import Adapter as AdapterSettings
    from trainer.settings import Base, Dataset, Settings, Training
    from trainer.training.attempt import scan
    from trainer.training.material import gather

    wanted = Settings(
        base=Base(model="embedded", device="cpu"),
        dataset=Dataset(folder=folder, resolution=64, shuffle_tags=True),
        adapter=AdapterSettings(text_encoder=False),
        training=Training(batch_size=BATCH_SIZE),
    )
    model = load(wanted.base)
    begun = time.perf_counter()
    scanned = scan(folder, cache_folder())
    read = time.perf_counter()
    material = gather(model, wanted, scanned, lambda stage, done, total: None, False)
    batches = Batches(material.images, wanted)
    batches.batch(0, 0)
    ready = time.perf_counter()
    waits = []
    for step in range(1, BATCHES):
        time.sleep(STEP_SECONDS)  # the step, which leaves the processor to the next batch
        asked = time.perf_counter()
        batches.batch(step, 0)
        waits.append(time.perf_counter() - asked)
    waits.sort()
    return {
        "images": len(scanned.examples),
        "scan_s": read - begun,
        "start_s": ready - begun,
        "peak_mib": peak_mib(),
        "wait_ms": waits[len(waits) // 2] * 1e3,
        "longest_wait_ms": waits[-1] * 1e3,
        "waiting_share": sum(waits) / (sum(waits) + STEP_SECONDS * len(waits)),
    }


def in_a_process(folder: Path, cache: Path) -> dict[str, float]:
    """`measure` of a folder in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.training_data", str(folder)],
        env=os.environ | {"ATELIER_CACHE": str(cache), "OMP_WAIT_POLICY": "PASSIVE"},
        stdout=subprocess.PIPE,
        check=True,
    )
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def compare(fewest: Path, few: Path, many: Path, cache: Path) -> dict[str, float]:
    """The start with 12 images against many, and memory with 100 against many; all caches warm."""
    for folder in (fewest, few, many):
        in_a_process(folder, cache)
    smallest, small, large = (in_a_process(folder, cache) for folder in (fewest, few, many))
    return {
        "start_few_s": smallest["start_s"],
        "start_many_s": large["start_s"],
        "run_growth_mib": large["peak_mib"] - small["peak_mib"],
        "wait_ms": large["wait_ms"],
        "longest_wait_ms": large["longest_wait_ms"],
        "waiting_share": large["waiting_share"],
    }


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
