"""What an import is offered, sorted by kind: images, their captions and masks, and what is refused.

Files come loose, in folders or in zips. Zips are unpacked into a staging folder under numbers; the
names inside are only used to match images with captions, and as labels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path, PurePosixPath

from trainer.data import archives, captions, images, sidecars
from trainer.data.dataset import MASK_SUFFIX, is_mask_name, is_visible
from trainer.data.names import shown
from trainer.errors import DatasetError

Key = tuple[int, str]
"""By which files find each other: the origin, and the path without suffix (or with, for texts)."""

_ZIP_SUFFIX = ".zip"
_LOOSE = 0


@dataclass(frozen=True)
class Refused:
    """A file that was not taken, and why: a sentence that names it."""

    name: str
    reason: str

    @classmethod
    def because(cls, name: str | PurePosixPath, error: DatasetError) -> Refused:
        return cls(shown(str(name)), str(error))


@dataclass(frozen=True)
class Piece:
    """A file on offer: where its bytes are, its name, and the set of files that it came in.

    Files are matched by name only within an origin: all loose files, one folder, or one zip.
    """

    path: Path
    name: PurePosixPath
    origin: int = _LOOSE

    @property
    def key(self) -> Key:
        return self.origin, str(self.name.with_suffix(""))


@dataclass
class Offers:
    """Everything on offer."""

    images: list[Piece] = field(default_factory=list)
    captions: dict[Key, Piece] = field(default_factory=dict)
    masks: dict[Key, Piece] = field(default_factory=dict)
    texts: dict[Key, str] = field(default_factory=dict)
    """Captions from `metadata.jsonl`, by the image's name with its suffix."""
    labels: dict[Key, str] = field(default_factory=dict)
    """Earlier labels, if this is a dataset that was imported before; keyed as the texts are."""
    refused: list[Refused] = field(default_factory=list)

    def refuse(self, name: str | PurePosixPath, reason: str) -> None:
        """Notes that `name` is not taken; `reason` goes on from the name."""
        self.refused.append(Refused(shown(str(name)), f"{shown(str(name))} {reason}."))

    def sort_in(self, piece: Piece) -> None:
        """Puts a file where its name says that it belongs."""
        name = piece.name.name
        suffix = piece.name.suffix.lower()
        if is_mask_name(name):
            stem = piece.name.stem.removesuffix(MASK_SUFFIX)
            self.masks[piece.origin, str(piece.name.with_name(stem))] = piece
        elif images.is_image_name(name):
            self.images.append(piece)
        elif suffix in captions.SUFFIXES:
            if piece.key in self.captions:
                self.refuse(piece.name, "is a second caption of the same name")
            else:
                self.captions[piece.key] = piece
        elif name == sidecars.METADATA_FILE:
            self._add_table(piece, self.texts, sidecars.read_metadata(piece.path, str(piece.name)))
        elif name == sidecars.LABELS_FILE:
            self._add_table(piece, self.labels, sidecars.read_labels(piece.path, str(piece.name)))
        elif suffix in images.OTHER_SUFFIXES:
            self.refuse(piece.name, f"is of a kind ({suffix}) that is not read; save it as JPEG")
        else:
            self.refuse(piece.name, "is neither an image that can be read, a caption nor a zip")

    def _add_table(self, piece: Piece, table: dict[Key, str], rows: dict[str, str]) -> None:
        for name, text in rows.items():
            table[piece.origin, str(piece.name.parent / name)] = text


def gather(sources: Sequence[Path], names: Sequence[str], staging: Path) -> Offers:
    """Sorts the files at `sources`, which their owner calls `names`; folders and zips are opened.

    Raises:
        OSError: if a source cannot be read or `staging` cannot be written.
    """
    offers = Offers()
    origins = count(_LOOSE + 1)
    for source, name in zip(sources, names, strict=True):
        loose = Piece(source, _inside(name))
        pieces = _walk(source, next(origins)) if source.is_dir() else [loose]
        for piece in pieces:
            try:
                if piece.name.suffix.lower() == _ZIP_SUFFIX:
                    _unpack(piece, next(origins), staging, offers)
                else:
                    offers.sort_in(piece)
            except DatasetError as error:
                offers.refused.append(Refused.because(piece.name, error))
    return offers


def _walk(folder: Path, origin: int) -> Iterator[Piece]:
    """The files in a folder and below, named from the folder on."""
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(filter(is_visible, folders))
        for file in sorted(filter(is_visible, files)):
            path = Path(root, file)
            yield Piece(path, PurePosixPath(folder.name, *path.relative_to(folder).parts), origin)


def _unpack(piece: Piece, origin: int, staging: Path, offers: Offers) -> None:
    """Sorts in the members of a zip, which then lie in `staging` under numbers."""
    with archives.open_archive(piece.path, str(piece.name)) as archive:
        for number, member in enumerate(archive.members()):
            name = _inside(member.name)
            if name.suffix.lower() == _ZIP_SUFFIX:
                offers.refuse(name, "is a zip within a zip")
                continue
            path = staging / f"{origin}-{number}"
            try:
                with path.open("wb") as target:
                    archive.extract(member, target, images.MAX_BYTES)
                offers.sort_in(Piece(path, name, origin))
            except archives.RefusedError as refusal:
                path.unlink()
                offers.refuse(name, str(refusal))


def _inside(name: str) -> PurePosixPath:
    """A name as a relative path that leads downwards only: it will be shown and matched."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return PurePosixPath(*[part for part in parts if part not in ("/", "//", "..")] or ["unnamed"])
