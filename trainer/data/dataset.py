"""A folder of images and captions, read as people and other trainers lay it out.

`a.png` has its caption in `a.txt` or `a.caption` beside it, or in a line of the folder's
`metadata.jsonl`. Sub-folders are read; the images of one named `10_cat` are repeated ten times, as
kohya's trainer does. Beside `a.png`, `a-masklabel.png` is its mask. Hidden files are left alone.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from trainer.data import captions, images
from trainer.data.captions import read_caption
from trainer.data.names import shown
from trainer.errors import DatasetError

LABELS_FILE = "labels.json"
"""In a dataset made by an import: for every image file, the name that it came under."""
METADATA_FILE = "metadata.jsonl"
MASK_SUFFIX = "-masklabel"
MAX_REPEATS = 1000

_REPEATS = re.compile(r"^(\d+)_")
_IGNORED_FOLDERS = frozenset({"__MACOSX", "@eaDir"})
_NAMED_AT_MOST = 5


@dataclass(frozen=True)
class Example:
    """One image to learn from. Sizes are in pixels, after EXIF orientation."""

    image: Path
    caption: str
    width: int
    height: int
    repeats: int = 1
    mask: Path | None = None
    label: str = ""


@dataclass(frozen=True)
class Scan:
    """What a folder holds: its examples, sorted by path, and what a person should know of them."""

    examples: tuple[Example, ...]
    notices: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """An image file that has been found but not opened, with everything around it."""

    image: Path
    caption: str
    repeats: int
    mask: Path | None
    label: str


@dataclass(frozen=True)
class Listing:
    """The images of a folder, none of them opened yet."""

    entries: tuple[Entry, ...]
    notices: tuple[str, ...]
    problems: tuple[DatasetError, ...]


def scan(folder: Path) -> Scan:
    """All examples in `folder`, each image decoded once to be certain that it can be.

    Raises:
        DatasetError: if the folder is missing or holds no image, or naming the images, masks and
            captions that cannot be read.
    """
    listing = list_folder(folder)
    problems = list(listing.problems)
    examples: list[Example] = []
    animated: list[Path] = []
    for entry, result in zip(listing.entries, measure_all(listing.entries), strict=True):
        if isinstance(result, DatasetError):
            problems.append(result)
            continue
        if result.animated:
            animated.append(entry.image)
        examples.append(
            Example(
                image=entry.image,
                caption=entry.caption,
                width=result.width,
                height=result.height,
                repeats=entry.repeats,
                mask=entry.mask,
                label=entry.label,
            )
        )
    if problems:
        raise _together(problems)
    notices = list(listing.notices)
    if animated:
        notices.append(f"Only the first frame is used of {_named(animated)}, being animated.")
    without = [example.image for example in examples if not example.caption]
    if without:
        notices.append(f"{_count(len(without), 'image')} without a caption: {_named(without)}.")
    return Scan(tuple(examples), tuple(notices))


def list_folder(folder: Path) -> Listing:
    """What `folder` holds by its file names and captions; no image is opened.

    Raises:
        DatasetError: if the folder is missing, not a folder, not readable, or has no images.
    """
    if not folder.exists():
        raise DatasetError(f"The folder {shown(folder)} does not exist.")
    if not folder.is_dir():
        raise DatasetError(f"{shown(folder)} is not a folder.", "Give the folder of the images.")
    entries: list[Entry] = []
    notices: list[str] = []
    problems: list[DatasetError] = []
    for directory, names in _walk(folder, notices):
        reader = _Directory(folder, directory, names)
        entries += reader.entries()
        notices += reader.notices
        problems += reader.problems
    if not entries and not problems:
        raise DatasetError(
            f"The folder {shown(folder)} holds no images.",
            "It needs PNG, JPEG, WebP, AVIF, BMP, TIFF or GIF files.",
        )
    return Listing(tuple(sorted(entries, key=lambda e: e.image)), tuple(notices), tuple(problems))


def measure_all(entries: Iterable[Entry]) -> Iterator[images.Measured | DatasetError]:
    """Decodes the images and masks of `entries`, several at a time; the results are in order."""
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        yield from pool.map(_measure, entries)


def _measure(entry: Entry) -> images.Measured | DatasetError:
    try:
        if entry.mask is not None:
            images.measure(entry.mask)
        return images.measure(entry.image)
    except DatasetError as error:
        return error


def _walk(folder: Path, notices: list[str]) -> Iterator[tuple[Path, list[str]]]:
    """Folders and the names of their files, both sorted; nothing hidden, no links to folders."""

    def refuse(error: OSError) -> None:
        raise DatasetError(f"{shown(error.filename)} cannot be read: {error.strerror}.") from error

    for root, folders, names in os.walk(folder, onerror=refuse):
        directory = Path(root)
        visible = sorted(n for n in folders if not n.startswith(".") and n not in _IGNORED_FOLDERS)
        linked = [name for name in visible if (directory / name).is_symlink()]
        for name in linked:  # following them could go round in circles
            notices.append(f"{shown(directory / name)} is a link to a folder and was not read.")
        folders[:] = [name for name in visible if name not in linked]
        yield directory, sorted(name for name in names if not name.startswith("."))


class _Directory:
    """One folder of a dataset: matches its images with captions, masks, repeats and labels."""

    def __init__(self, root: Path, path: Path, names: list[str]) -> None:
        self.path = path
        self.names = frozenset(names)
        self.images = [n for n in names if images.is_image_name(n) and not _is_mask(n)]
        self.captions = {
            (Path(name).stem, Path(name).suffix.lower()): name
            for name in names
            if Path(name).suffix.lower() in captions.SUFFIXES
        }
        self.notices: list[str] = []
        self.problems: list[DatasetError] = []
        self.repeats = self._repeats(root)
        self.labels = self._labels()
        self.metadata = self._metadata()

    def entries(self) -> list[Entry]:
        """The folder's images. What is wrong around them is in `notices` and `problems`."""
        stems = {Path(name).stem for name in self.images}
        for (stem, _), name in sorted(self.captions.items()):
            if stem not in stems:
                self.notices.append(f"{shown(self.path / name)} is a caption without an image.")
        return [
            Entry(
                image=self.path / name,
                caption=self._caption(name),
                repeats=self.repeats,
                mask=self._mask(name),
                label=self.labels.get(name, shown(name)),
            )
            for name in self.images
        ]

    def _caption(self, name: str) -> str:
        for suffix in captions.SUFFIXES:
            file = self.captions.get((Path(name).stem, suffix))
            if file is None:
                continue
            try:
                caption = read_caption(self.path / file)
            except DatasetError as error:
                self.problems.append(error)
                return ""
            if caption.notice:
                self.notices.append(caption.notice)
            return caption.text
        return self.metadata.get(name, "")

    def _mask(self, name: str) -> Path | None:
        mask = f"{Path(name).stem}{MASK_SUFFIX}.png"
        return self.path / mask if mask in self.names else None

    def _repeats(self, root: Path) -> int:
        """The number that the nearest enclosing folder's name begins with; 1 if none does."""
        for parent in (self.path, *self.path.parents):
            if parent == root:
                return 1
            if match := _REPEATS.match(parent.name):
                count = int(match[1])
                if 1 <= count <= MAX_REPEATS:
                    return count
                self.notices.append(
                    f"The {match[1]} in {shown(parent)} was not taken as a number of repeats, "
                    f"which go from 1 to {MAX_REPEATS}."
                )
                return 1
        return 1

    def _labels(self) -> dict[str, str]:
        path = self.path / LABELS_FILE
        if LABELS_FILE not in self.names:
            return {}
        try:
            labels = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            self.notices.append(f"{shown(path)} was not used: {shown(str(error))}.")
            return {}
        if not isinstance(labels, dict):
            return {}
        return {name: str(label) for name, label in labels.items()}

    def _metadata(self) -> dict[str, str]:
        """Captions by file name from the folder's `metadata.jsonl` (the Hugging Face layout)."""
        if METADATA_FILE not in self.names:
            return {}
        path = self.path / METADATA_FILE
        found: dict[str, str] = {}
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
            for line in filter(str.strip, lines):
                row = json.loads(line)
                found[row["file_name"]] = str(row.get("text", row.get("caption", ""))).strip()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self.problems.append(
                DatasetError(
                    f"{shown(path)} cannot be used: {shown(str(error))}.",
                    'Each of its lines must be like {"file_name": "a.png", "text": "a cat"}.',
                )
            )
        return found


def _is_mask(name: str) -> bool:
    return Path(name).stem.endswith(MASK_SUFFIX)


def _together(problems: list[DatasetError]) -> DatasetError:
    """One error for all files that cannot be used; a few are named, the others counted."""
    first = problems[0]
    if len(problems) == 1:
        return first
    others = " ".join(problem.what for problem in problems[1:_NAMED_AT_MOST])
    rest = len(problems) - _NAMED_AT_MOST
    more = f" {_count(rest, 'more file')} cannot be used." if rest > 0 else ""
    return DatasetError(f"{first.what} {others}{more}", first.advice)


def _named(paths: list[Path]) -> str:
    """The first few names, and how many more there are."""
    names = ", ".join(shown(path.name) for path in paths[:_NAMED_AT_MOST])
    rest = len(paths) - _NAMED_AT_MOST
    return f"{names} and {rest} more" if rest > 0 else names


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
