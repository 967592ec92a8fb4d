"""The report on a dataset: what is in it, how it will be used, and what had better be changed."""

from __future__ import annotations

import itertools
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, field_serializer

from trainer.data import captions, tokens
from trainer.data.buckets import Size, assign, bucket_sizes
from trainer.data.dataset import Entry, list_folder, visible_files
from trainer.data.editing import companions, locked
from trainer.data.findings import Facts, Finding, Seen, Severity, find_all
from trainer.data.images import measure
from trainer.data.looks import Look, look
from trainer.data.names import listed, printable, shown
from trainer.data.pool import in_order
from trainer.data.tokens import Tokenizer
from trainer.errors import DatasetError
from trainer.files import write_atomically
from trainer.settings import Dataset

Progress = Callable[[int, int], None]
"""Called with the number of images done, and of all."""

REMOVED_FOLDER = ".removed"


class Bucket(BaseModel):
    """A size of training, and what it gets: `share` of all steps, from 0 to 1."""

    model_config = ConfigDict(frozen=True)

    width: int
    height: int
    images: int
    share: float


class Report(BaseModel):
    """What there is to say about a folder of images and captions.

    `repeats` counts every image as often as it is repeated. Sizes are (width, height) in pixels,
    by area.
    """

    model_config = ConfigDict(frozen=True)

    folder: Path
    resolution: int
    trigger: str | None
    images: int
    captions: int
    repeats: int
    bytes: int
    smallest: tuple[int, int] | None
    median: tuple[int, int] | None
    largest: tuple[int, int] | None
    buckets: tuple[Bucket, ...]
    findings: tuple[Finding, ...]

    @field_serializer("folder")
    def _printable(self, folder: Path) -> str:
        return printable(folder)

    def count(self, severity: Severity) -> int:
        """The number of findings of that severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def to_json(self) -> str:
        """The report as indented JSON."""
        return self.model_dump_json(indent=2)

    def to_words(self) -> str:
        """The report for people, a few lines and then one paragraph a finding."""
        repeated = f" ({self.repeats} with repeats)" if self.repeats != self.images else ""
        lines = [
            f"{shown(self.folder)}: {self.images} images{repeated}, {self.captions} with a caption."
        ]
        if self.smallest and self.median and self.largest:
            sizes = " · ".join(
                f"{name} {width} x {height}"
                for name, (width, height) in (
                    ("smallest", self.smallest), ("median", self.median), ("largest", self.largest)
                )
            )  # fmt: skip
            lines.append(f"Sizes: {sizes}; {self.bytes / 2**20:,.1f} MiB in all.")
        lines.append(f"At resolution {self.resolution}:")
        for bucket in self.buckets:
            size = f"{bucket.width} x {bucket.height}"
            lines.append(f"  {size:>11}  {bucket.images:>6} images  {bucket.share:>6.1%} of steps")
        for finding in self.findings:
            lines += ["", f"{finding.severity}: {finding.message}"]
            if len(finding.files) > 1 and finding.code not in _NAMES_ITS_FILES:
                lines.append(f"  {listed(finding.files)}")
            elif len(finding.files) == 1 and finding.files[0] not in finding.message:
                lines.append(f"  {finding.files[0]}")
            if finding.fix:
                lines.append(f"  {finding.fix}{' (--fix does this)' if finding.fixable else ''}")
        if not self.findings:
            lines += ["", "Nothing to improve."]
        return "\n".join(lines)


_NAMES_ITS_FILES = frozenset({"copies", "look_alikes", "not_utf8", "no_image"})


def check(
    folder: Path,
    wanted: Dataset | None = None,
    tokenizer: Tokenizer | None = None,
    progress: Progress | None = None,
) -> Report:
    """Looks at every image and caption in `folder`, for a training that has the settings `wanted`.
    Broken ones are findings, not errors.

    `tokenizer` is that of the base, by default CLIP's.

    Raises:
        DatasetError: if the folder is missing, cannot be read, or holds no images.
    """
    wanted = wanted or Dataset()
    resolution = wanted.resolution
    listing = list_folder(folder, wanted.mask_folder, wanted.class_folder)
    sizes = bucket_sizes(resolution)
    seen: list[Seen] = []
    broken: list[tuple[Path, DatasetError]] = []
    results = in_order(lambda entry: _look(entry, resolution), listing.entries)
    for entry, result in zip(listing.entries, results, strict=True):
        if not isinstance(result, Look):
            broken.append(result)
        else:
            bucket = assign(result.measured.width, result.measured.height, sizes)
            file = printable(entry.image.relative_to(folder).as_posix())
            seen.append(Seen(entry, result, bucket, file))
        if progress:
            progress(len(seen) + len(broken), len(listing.entries))
    facts = Facts(
        folder=folder,
        listing=listing,
        seen=tuple(seen),
        broken=tuple(broken),
        trigger=wanted.trigger,
        tokenizer=tokenizer or tokens.clip(),
        max_tokens=wanted.max_tokens,
    )
    return _report(facts, resolution)


def apply_fixes(report: Report) -> list[str]:
    """Does what the report's fixable findings advise; returns a sentence for each thing done.

    Nothing is deleted: images are moved into the hidden folder `.removed`, captions as they were
    are copied there.

    Raises:
        DatasetError: if the folder has changed so that it cannot be read, or cannot be written.
    """
    done: list[str] = []
    with locked(report.folder):
        paths = {
            printable(path.relative_to(report.folder).as_posix()): path
            for path in visible_files(report.folder)
        }
        for finding in report.findings:
            # What an earlier fix has moved is not there any more.
            files = [paths[file] for file in finding.files if paths.get(file, Path()).is_file()]
            match finding.code:
                case "broken_image":
                    done += [_set_aside(report.folder, path) for path in files]
                case "copies":
                    done += [_set_aside(report.folder, path) for path in files[1:]]
                case "not_utf8":
                    done += [_recode(report.folder, path) for path in files]
                case "no_trigger":
                    done += _add_trigger(report, files)
    return done


def _look(entry: Entry, resolution: int) -> Look | tuple[Path, DatasetError]:
    """What an image looks like, or the file, it or its mask, that cannot be read, and why."""
    path = entry.image
    try:
        found = look(path, resolution)
        if entry.mask is not None:
            path = entry.mask
            measure(path)
    except DatasetError as error:
        return path, error
    return found


def _report(facts: Facts, resolution: int) -> Report:
    by_area = sorted(
        ((seen.look.measured.width, seen.look.measured.height) for seen in facts.seen),
        key=lambda size: (size[0] * size[1], size),
    )
    return Report(
        folder=facts.folder,
        resolution=resolution,
        trigger=facts.trigger,
        images=len(facts.seen) + len(facts.broken),
        captions=sum(bool(entry.caption) for entry in facts.listing.entries),
        repeats=sum(entry.repeats for entry in facts.listing.entries),
        bytes=sum(entry.image.stat().st_size for entry in facts.listing.entries),
        smallest=by_area[0] if by_area else None,
        median=by_area[len(by_area) // 2] if by_area else None,
        largest=by_area[-1] if by_area else None,
        buckets=_buckets(facts.seen),
        findings=find_all(facts),
    )


def _buckets(seen: Sequence[Seen]) -> tuple[Bucket, ...]:
    """The buckets that are used, those with the greatest share first."""
    members: defaultdict[Size, list[Seen]] = defaultdict(list)
    for one in seen:
        members[one.bucket].append(one)
    total = sum(one.entry.repeats for one in seen)
    buckets = [
        Bucket(
            width=size.width,
            height=size.height,
            images=len(inside),
            share=sum(one.entry.repeats for one in inside) / total,
        )
        for size, inside in members.items()
    ]
    return tuple(sorted(buckets, key=lambda b: (-b.share, b.width)))


def _set_aside(folder: Path, image: Path) -> str:
    """Moves an image with its caption and mask into the hidden folder."""
    for path in (image, *companions(image)):
        path.replace(_place_in_removed(folder, path))
    return f"{_inside(folder, image)} was set aside in {REMOVED_FOLDER}."


def _recode(folder: Path, path: Path) -> str:
    caption = captions.read_caption(path)
    _rewrite(folder, path, caption.text)
    return f"{_inside(folder, path)} is UTF-8 now; it was read as {caption.encoding}."


def _add_trigger(report: Report, files: Sequence[Path]) -> list[str]:
    wanted = set(files)
    entries = [entry for entry in list_folder(report.folder).entries if entry.image in wanted]
    for entry in entries:
        text = captions.with_trigger(entry.caption, report.trigger)
        _rewrite(report.folder, entry.image.with_suffix(".txt"), text)
    return [f'"{report.trigger}" was put in front of {len(entries)} captions.'] if entries else []


def _rewrite(folder: Path, path: Path, text: str) -> None:
    """Replaces a caption, of which the hidden folder keeps a copy."""
    if path.exists():
        shutil.copyfile(path, _place_in_removed(folder, path))
    write_atomically(path, f"{text}\n".encode())


def _place_in_removed(folder: Path, path: Path) -> Path:
    """Where a file goes in the hidden folder, under a name that is not taken there."""
    target = folder / REMOVED_FOLDER / path.relative_to(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    free = target
    for number in itertools.count(2):
        if not free.exists():
            break
        free = target.with_name(f"{target.stem} ({number}){target.suffix}")
    return free


def _inside(folder: Path, path: Path) -> str:
    return shown(path.relative_to(folder))
