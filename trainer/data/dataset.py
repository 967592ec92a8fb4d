"""A folder of images and captions, read as people and other trainers lay it out.

`a.png` has its caption in `a.txt` or `a.caption` beside it, or in a line of a `metadata.jsonl` in
its folder or above. Sub-folders are read; the images of one named `10_cat` are repeated ten times,
and called "cat" where they have no caption, as kohya's trainer does. `a-masklabel.png` is the mask
of `a.png`. Hidden files are left alone.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trainer.data import captions, images, sidecars
from trainer.data.captions import read_caption
from trainer.data.checked import Checked, Known
from trainer.data.names import listed, shown
from trainer.data.pool import in_order
from trainer.errors import DatasetError

MASK_SUFFIX = "-masklabel"
MAX_REPEATS = 1000

_REPEATS = re.compile(r"^([0-9]+)_(.*)$")
_SYSTEM_FILES = frozenset({"__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini"})
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
    digest: str = ""
    """SHA-256 of the image file, in hex."""
    mask_digest: str = ""


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
    """The images of a folder, sorted by path, none of them opened yet.

    `problems` are captions and other small files that cannot be used; `recoded`, captions that are
    not in UTF-8; `orphans`, captions and masks without an image; `remarks`, whatever else there is
    to say. The notices say all but the problems.
    """

    entries: tuple[Entry, ...]
    notices: tuple[str, ...]
    problems: tuple[DatasetError, ...]
    recoded: tuple[Path, ...] = ()
    orphans: tuple[Path, ...] = ()
    remarks: tuple[str, ...] = ()


def scan(
    folder: Path,
    cache: Path | None = None,
    masks: Path | None = None,
    others: Path | None = None,
    caption: str = "",
) -> Scan:
    """All examples in `folder`, each image decoded once to be certain that it can be.

    In the folder `cache`, if one is given, is kept which images need not be decoded again. `masks`
    and `others` are as in `list_folder`; images without a caption get `caption`.

    Raises:
        DatasetError: if the folder is missing or holds no image, or naming the images, masks and
            captions that cannot be read.
    """
    listing = list_folder(folder, masks, others)
    problems = list(listing.problems)
    examples: list[Example] = []
    several: list[Path] = []
    checked = Checked(folder, cache)
    results = in_order(lambda entry: _measure(entry, checked), listing.entries)
    for entry, result in zip(listing.entries, results, strict=True):
        if isinstance(result, DatasetError):
            problems.append(result)
            continue
        found, mask = result
        if found.measured.several:
            several.append(entry.image)
        examples.append(
            Example(
                image=entry.image,
                caption=entry.caption or caption,
                width=found.measured.width,
                height=found.measured.height,
                repeats=entry.repeats,
                mask=entry.mask,
                label=entry.label,
                digest=found.digest,
                mask_digest="" if mask is None else mask.digest,
            )
        )
    checked.save()
    if problems:
        raise _together(problems)
    notices = list(listing.notices)
    if several:
        names = listed([path.name for path in several])
        notices.append(f"Only the first picture is used of those with frames or pages: {names}.")
    without = [example.image.name for example in examples if not example.caption]
    if without:
        notices.append(f"Without a caption: {listed(without)}.")
    return Scan(tuple(examples), tuple(notices))


def list_folder(folder: Path, masks: Path | None = None, others: Path | None = None) -> Listing:
    """What `folder` holds by its file names and captions; no image is opened.

    `masks` is a folder of masks named as their images, in the same sub-folders; `others`, one of
    images that are not of this dataset. Either may lie inside `folder`: what is in it is left out.

    Raises:
        DatasetError: if a folder is missing, not a folder, or not readable, or has no images.
    """
    _check_is_folder(folder)
    reader = _Reader(folder)
    apart = [place.resolve() for place in (masks, others) if place is not None]
    if masks is not None:
        _check_is_folder(masks)
        reader.masks = masks_in(masks)
    for directory, names in _walk(folder, reader.remarks):
        if not any(directory.resolve().is_relative_to(place) for place in apart):
            reader.read(directory, names)
    if not reader.entries and not reader.problems:
        but = f", but {listed(reader.unread)}" if reader.unread else ""
        raise DatasetError(
            f"The folder {shown(folder)} holds no images that can be read{but}.",
            "It needs PNG, JPEG, WebP, AVIF, BMP, TIFF or GIF files.",
        )
    return reader.listing()


def masks_in(folder: Path) -> dict[str, Path]:
    """The masks in a folder of masks, by the path of their images inside the dataset, without
    suffix and with `/` between folders. A name may end in `-masklabel`."""
    return {
        path.relative_to(folder).with_suffix("").as_posix().removesuffix(MASK_SUFFIX): path
        for path in visible_files(folder)
        if images.is_image_name(path.name)
    }


def _check_is_folder(folder: Path) -> None:
    try:
        is_folder = stat.S_ISDIR(folder.stat().st_mode)
    except FileNotFoundError:
        raise DatasetError(f"The folder {shown(folder)} does not exist.") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DatasetError(f"The folder {shown(folder)} cannot be read: {reason}.") from None
    if not is_folder:
        raise DatasetError(f"{shown(folder)} is not a folder.", "Give the folder of the images.")


def visible_files(folder: Path) -> list[Path]:
    """The files in `folder` and below that are not hidden, sorted."""
    return sorted(
        directory / name for directory, names in _walk(folder, remarks=[]) for name in names
    )


def image_files(folder: Path) -> list[Path]:
    """The image files in `folder` and below, sorted; masks are none."""
    return [
        path
        for path in visible_files(folder)
        if images.is_image_name(path.name) and not is_mask_name(path.name)
    ]


def is_visible(name: str) -> bool:
    """Whether a file or folder is a person's own, not hidden and not a system's."""
    return not name.startswith(".") and name not in _SYSTEM_FILES


def is_mask_name(name: str) -> bool:
    """Whether a file of this name is the mask of another."""
    path = Path(name)
    return path.stem.endswith(MASK_SUFFIX) and path.suffix.lower() == ".png"


def repeats_in_name(folder_name: str) -> tuple[int, str] | None:
    """The repeats and the caption in a folder's name such as `10_cat`; none in others."""
    match = _REPEATS.match(folder_name)
    if match is None or not 1 <= int(match[1][:9]) <= MAX_REPEATS:
        return None
    return int(match[1]), match[2].replace("_", " ").strip()


def _measure(entry: Entry, checked: Checked) -> tuple[Known, Known | None] | DatasetError:
    """What is known of an image and of its mask."""
    try:
        mask = None if entry.mask is None else checked.measure(entry.mask)
        return checked.measure(entry.image), mask
    except DatasetError as error:
        return error


def _walk(folder: Path, remarks: list[str]) -> Iterator[tuple[Path, list[str]]]:
    """Folders, from the top down, and the names of their files, sorted; nothing hidden."""

    def refuse(error: OSError) -> None:
        raise DatasetError(f"{shown(error.filename)} cannot be read: {error.strerror}.") from error

    for root, folders, names in os.walk(folder, onerror=refuse):
        directory = Path(root)
        visible = sorted(filter(is_visible, folders))
        linked = [name for name in visible if (directory / name).is_symlink()]
        for name in linked:  # following them could go round in circles
            remarks.append(f"{shown(directory / name)} is a link to a folder and was not read.")
        folders[:] = [name for name in visible if name not in linked]
        yield directory, sorted(filter(is_visible, names))


@dataclass
class _Reader:
    """Matches images with captions, masks, repeats and labels, folder by folder from the top."""

    root: Path
    masks: Mapping[str, Path] = field(default_factory=dict)  # by image, without its suffix
    entries: list[Entry] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    problems: list[DatasetError] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)  # pictures of other kinds
    _recoded: dict[Path, str] = field(default_factory=dict)  # encodings by caption file
    _orphans: list[Path] = field(default_factory=list)
    _metadata: dict[Path, str] = field(default_factory=dict)  # captions by image
    _labels: dict[Path, str] = field(default_factory=dict)  # by image

    def read(self, directory: Path, names: list[str]) -> None:
        """Adds the images of one folder, given the sorted names of its files."""
        self._read_sidecars(directory, names)
        self.unread += [n for n in names if Path(n).suffix.lower() in images.OTHER_SUFFIXES]
        found = [n for n in names if images.is_image_name(n) and not is_mask_name(n)]
        files = {(Path(n).stem, Path(n).suffix.lower()): n for n in names}
        repeats, named_caption = self._repeats(directory)
        stems = {Path(name).stem for name in found}
        for (stem, suffix), name in files.items():
            belongs_to = stem.removesuffix(MASK_SUFFIX) if is_mask_name(name) else stem
            is_companion = suffix in captions.SUFFIXES or is_mask_name(name)
            if is_companion and belongs_to not in stems:
                self._orphans.append(directory / name)
        unnamed: list[str] = []
        for name in found:
            image = directory / name
            caption = self._caption(image, files)
            if not caption and named_caption:
                caption = named_caption
                unnamed.append(name)
            beside = files.get((image.stem + MASK_SUFFIX, ".png"))
            inside = image.relative_to(self.root).with_suffix("").as_posix()
            self.entries.append(
                Entry(
                    image=image,
                    caption=caption,
                    repeats=repeats,
                    mask=directory / beside if beside else self.masks.get(inside),
                    label=self._labels.get(image, shown(name)),
                )
            )
        if unnamed:
            self.remarks.append(
                f'Without a caption, called "{named_caption}" after the folder: {listed(unnamed)}.'
            )

    def listing(self) -> Listing:
        """Everything that has been read."""
        remarks = list(self.remarks)
        known = {entry.image for entry in self.entries}
        used = {entry.mask for entry in self.entries}
        lost = [path.name for path in self.masks.values() if path not in used]
        if lost:
            remarks.append(f"Masks in the folder of masks without an image: {listed(lost)}.")
        missing = [image.name for image in self._metadata if image not in known]
        if missing:
            remarks.append(f"In {sidecars.METADATA_FILE}, but not there: {listed(missing)}.")
        if self.unread:
            remarks.append(f"Not read, but can be saved as JPEG or PNG: {listed(self.unread)}.")
        notices = list(remarks)
        if self._recoded:
            files = listed([path.name for path in self._recoded])
            encodings = " or ".join(sorted(set(self._recoded.values())))
            notices.append(f"Captions not in UTF-8, read as {encodings}: {files}.")
        if self._orphans:
            files = listed([path.name for path in self._orphans])
            notices.append(f"Captions and masks without an image: {files}.")
        return Listing(
            entries=tuple(sorted(self.entries, key=lambda entry: entry.image)),
            notices=tuple(notices),
            problems=tuple(self.problems),
            recoded=tuple(self._recoded),
            orphans=tuple(self._orphans),
            remarks=tuple(remarks),
        )

    def _caption(self, image: Path, files: dict[tuple[str, str], str]) -> str:
        for suffix in captions.SUFFIXES:
            name = files.get((image.stem, suffix))
            if name is None:
                continue
            try:
                caption = read_caption(image.parent / name)
            except DatasetError as error:
                self.problems.append(error)
                return ""
            if caption.guessed:
                self._recoded[image.parent / name] = caption.encoding
            return caption.text
        return self._metadata.get(image, "")

    def _repeats(self, directory: Path) -> tuple[int, str]:
        """Repeats and caption by the nearest folder that names them; below the root only."""
        for parent in (directory, *directory.parents):
            if parent == self.root:
                break
            if named := repeats_in_name(parent.name):
                return named
            if parent == directory and _REPEATS.match(parent.name):
                self.remarks.append(
                    f"The number in {shown(parent)} was not taken as repeats, which go from 1 to "
                    f"{MAX_REPEATS}."
                )
        return 1, ""

    def _read_sidecars(self, directory: Path, names: list[str]) -> None:
        try:
            if sidecars.METADATA_FILE in names:
                rows = sidecars.read_metadata(directory / sidecars.METADATA_FILE)
                self._metadata |= {directory / name: text for name, text in rows.items()}
            if sidecars.LABELS_FILE in names:
                rows = sidecars.read_labels(directory / sidecars.LABELS_FILE)
                self._labels |= {directory / name: label for name, label in rows.items()}
        except DatasetError as error:
            self.problems.append(error)


def _together(problems: list[DatasetError]) -> DatasetError:
    """One error for all files that cannot be used; a few are named, the others counted."""
    first = problems[0]
    others = "".join(f" {problem.what}" for problem in problems[1:_NAMED_AT_MOST])
    rest = len(problems) - _NAMED_AT_MOST
    more = f" Nor can {rest} more be used." if rest > 0 else ""
    return DatasetError(f"{first.what}{others}{more}", first.advice)
