"""How fast datasets are imported, scanned, reported on and trained from, and in how much memory.

    python -m bench.data [--images 5000] [--imported 600] [--work DIR] [--json]

Photographs of a megapixel are made in DIR (kept, and used again) or in a temporary folder. Times
are also given as a ratio to plainly decoding the same files with Pillow, one after the other, in
the same run, so that they mean the same on any machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from bench import training_data
from trainer.data.buckets import Size, assign, bucket_sizes
from trainer.data.dataset import scan
from trainer.data.editing import create_dataset
from trainer.data.importing import import_files
from trainer.data.pool import in_order
from trainer.data.report import check
from trainer.data.schedule import Schedule
from trainer.settings import Dataset

SIDES = ((1024, 1024), (1254, 836), (836, 1254), (1182, 886))  # about a megapixel each
FEW = 100
PLAINLY_DECODED = 100
BATCHES = 5_000

# What the issue on data asks for, on two cores.
REPORT_SECONDS, IMPORTED_PER_SECOND, GROWTH_MIB, START_SECONDS = 60.0, 60.0, 60.0, 2.0
FEWEST = 12


class Took(NamedTuple):
    """Seconds by the clock, and of the processor, all cores together."""

    seconds: float
    processor: float


def make_photograph(path: Path, seed: int) -> None:
    """A JPEG of a megapixel with as much detail as a camera's: some 300 KiB."""
    rng = np.random.default_rng(seed)
    width, height = SIDES[seed % len(SIDES)]
    pixels = np.zeros((height, width, 3), dtype=np.int16)
    for cells in (6, 60):
        blotches = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        pixels += np.asarray(blotches.resize((width, height), Image.Resampling.BICUBIC)) // 2
    pixels += rng.integers(-8, 9, (height, width, 1), dtype=np.int16)
    photograph = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    photograph.save(path, quality=88)
    path.with_suffix(".txt").write_text(f"a photograph of thing {seed}, outdoors, by day")


def make_folder(folder: Path, count: int) -> None:
    """Fills a folder with the photographs that it does not have yet."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [n for n in range(count) if not (folder / f"{n:05d}.txt").exists()]
    for done, _ in enumerate(
        in_order(lambda n: make_photograph(folder / f"{n:05d}.jpg", n), missing), start=1
    ):
        if done % 100 == 0:
            print(f"\rmaking photographs: {done} of {len(missing)}", end="", file=sys.stderr)
    if missing:
        print(file=sys.stderr)


def timed(work: Callable[[], object]) -> Took:
    """How long `work` takes."""
    start, processor = time.perf_counter(), time.process_time()
    work()
    return Took(time.perf_counter() - start, time.process_time() - processor)


def peak_mib() -> float:
    """The most memory that this process has ever held, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def decode_plainly(files: list[Path]) -> None:
    for file in files:
        with Image.open(file) as image:
            image.convert("RGB")


def batch_microseconds(folder: Path) -> float:
    """The mean time to name the images of a batch, over a run from its first step."""
    sizes = bucket_sizes(1024)
    examples = scan(folder).examples
    chosen: list[Size] = [assign(e.width, e.height, sizes) for e in examples]
    schedule = Schedule.plan(chosen, [e.repeats for e in examples], 4, 0)
    return timed(lambda: [schedule.batch(n) for n in range(BATCHES)]).seconds / BATCHES * 1e6


def measure(work: Path, count: int, imported: int) -> dict[str, float]:
    """All figures, over `count` photographs, of which `imported` are imported."""
    many, few = work / "many", work / "few"
    make_folder(many, count)
    make_folder(few, FEW)
    files = sorted(many.glob("*.jpg"))
    sample = files[:: max(1, len(files) // PLAINLY_DECODED)][:PLAINLY_DECODED]
    decode_plainly(sample)  # so that all are read from a warm disk
    plain = timed(lambda: decode_plainly(sample)).seconds / len(sample)

    with tempfile.TemporaryDirectory(dir=work) as place:
        cache = Path(place)
        scan(few, cache)
        rescan_few = timed(lambda: scan(few, cache))
        check(few, Dataset(resolution=512))
        peak_few = peak_mib()
        scanning = timed(lambda: scan(many, cache))
        rescan = timed(lambda: scan(many, cache))
        report = timed(lambda: check(many, Dataset(resolution=512)))
        growth = peak_mib() - peak_few
    fewest, latents = work / "fewest", work / "cache"
    make_folder(fewest, FEWEST)
    training = training_data.compare(fewest, few, many, latents)

    with tempfile.TemporaryDirectory(dir=work) as place:
        dataset = create_dataset(Path(place), "imported")
        chosen = [file for image in files[:imported] for file in (image, image.with_suffix(".txt"))]
        names = [file.name for file in chosen]
        importing = timed(lambda: import_files(chosen, names, dataset))
    return {
        "images": len(files),
        "plain_ms": plain * 1e3,
        "scan_s": scanning.seconds,
        "scan_processor_s": scanning.processor,
        "scan_ratio": scanning.seconds / (plain * len(files)),
        "rescan_s": rescan.seconds,
        "rescan_few_s": rescan_few.seconds,
        "report_s": report.seconds,
        "report_processor_s": report.processor,
        "report_ratio": report.seconds / (plain * len(files)),
        "import_per_s": imported / importing.seconds,
        "import_processor_s": importing.processor,
        "import_ratio": importing.seconds / (plain * imported),
        "growth_mib": growth,
        "batch_us": batch_microseconds(few),
        **training,
    }


def words(figures: dict[str, float]) -> str:
    """The figures for people, with what is asked of them."""
    count = round(figures["images"])
    allowed = REPORT_SECONDS * count / 5_000
    return "\n".join(
        (
            f"{os.cpu_count()} cores, {count} photographs of a megapixel, "
            f"each {figures['plain_ms']:.1f} ms to decode plainly",
            f"scan    {figures['scan_s']:8.1f} s    {figures['scan_ratio']:.2f} of plain decoding; "
            f"{figures['scan_processor_s']:.1f} s of processor",
            f"again   {figures['rescan_s']:8.1f} s    as the cache knows them all; "
            f"{figures['rescan_few_s']:.2f} s for {FEW}",
            f"report  {figures['report_s']:8.1f} s    {figures['report_ratio']:.2f} of plain "
            f"decoding; {figures['report_processor_s']:.1f} s of processor; {allowed:.0f} s are "
            "allowed",
            f"import  {figures['import_per_s']:8.0f} /s   {figures['import_ratio']:.2f} of plain "
            f"decoding; {figures['import_processor_s']:.1f} s of processor; "
            f"{IMPORTED_PER_SECOND:.0f} /s are asked for",
            f"memory  {figures['growth_mib']:+8.1f} MiB  from {FEW} images to {count}; "
            f"{GROWTH_MIB:.0f} MiB are allowed",
            f"batch   {figures['batch_us']:8.0f} µs   to name the images of one",
            f"start   {figures['start_many_s'] - figures['start_few_s']:+8.2f} s    with a warm "
            f"cache, from {FEWEST} images ({figures['start_few_s']:.2f} s) to {count}; "
            f"{START_SECONDS:.0f} s are allowed",
            f"run     {figures['run_growth_mib']:+8.1f} MiB  of a run that trains, from {FEW} "
            f"images to {count}; {GROWTH_MIB:.0f} MiB are allowed",
            f"wait    {figures['wait_ms']:8.2f} ms   for a batch, at most "
            f"{figures['longest_wait_ms']:.1f} ms: {figures['waiting_share']:.1%} of steps of "
            f"{training_data.STEP_SECONDS * 1e3:.0f} ms",
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=5_000, help="photographs to report on")
    parser.add_argument("--imported", type=int, default=600, help="photographs to import")
    parser.add_argument("--work", type=Path, help="where to keep the photographs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        figures = measure(work, arguments.images, min(arguments.imported, arguments.images))
    print(json.dumps(figures, indent=2) if arguments.json else words(figures))


if __name__ == "__main__":
    main()
