"""Taking images, captions, folders and zips into a dataset of the app's own layout.

Images are stored as they came, byte for byte, under generated names (`0001.jpg`), their captions
beside them in UTF-8 (`0001.txt`); the names that they came under are kept as labels. A file that
cannot be used is refused by name and the others are taken. Everything is checked in a hidden folder
first and moved into place at the end, so that a reader never meets half a file.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePosixPath

from trainer.data import captions, images, sidecars
from trainer.data.dataset import MASK_SUFFIX, image_files, repeats_in_name
from trainer.data.editing import locked, write_caption
from trainer.data.names import listed, shown
from trainer.data.offers import Key, Offers, Piece, Refused, gather
from trainer.data.pool import in_order
from trainer.errors import DatasetError
from trainer.files import sync

Progress = Callable[[int, int], None]
"""Called with the number of images done, and of all."""

_STAGING_PREFIX = ".import-"
_LONGEST_FOLDER = 60
_SUFFIXES = {
    "PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "WEBP": ".webp", "AVIF": ".avif", "BMP": ".bmp",
    "TIFF": ".tif", "GIF": ".gif",
}  # fmt: skip


@dataclass(frozen=True)
class ImportReport:
    """What an import did. `images` are paths inside the dataset; `captions` is a count."""

    images: tuple[str, ...]
    captions: int
    refused: tuple[Refused, ...]
    notices: tuple[str, ...]

    def to_words(self) -> str:
        """A line on what was taken, then one for each refusal and notice."""
        taken = f"Imported: {len(self.images)} images, {self.captions} captions."
        return "\n".join((taken, *(refused.reason for refused in self.refused), *self.notices))


@dataclass(frozen=True)
class _Staged:
    """An image that has been found good, with what belongs to it, in the staging folder."""

    piece: Piece
    image: Path
    suffix: str
    digest: bytes
    several: bool
    caption: Path | None = None
    mask: Path | None = None


def import_files(
    sources: Sequence[Path], names: Sequence[str], dataset: Path, progress: Progress | None = None
) -> ImportReport:
    """Takes the files at `sources`, which their owner calls `names`, into the folder `dataset`.

    A caption goes with the image of the same name; one that comes alone goes to the image that was
    imported under that name before.

    Raises:
        DatasetError: if the dataset is missing or cannot be written; nothing is imported then.
    """
    with locked(dataset):
        for orphan in dataset.glob(f"{_STAGING_PREFIX}*"):  # of an import that was killed
            shutil.rmtree(orphan)
        with tempfile.TemporaryDirectory(prefix=_STAGING_PREFIX, dir=dataset) as staging:
            offers = gather(sources, names, Path(staging))
            return _Import(dataset, Path(staging), offers).run(progress)


class _Import:
    """One import under way, with what it has found to say."""

    def __init__(self, dataset: Path, staging: Path, offers: Offers) -> None:
        self._dataset = dataset
        self._staging = staging
        self._offers = offers
        self._refused = offers.refused
        self._notices: list[str] = []
        self._captions = 0
        self._numbers = count()

    def run(self, progress: Progress | None) -> ImportReport:
        texts = self._read_captions()
        staging = in_order(
            lambda piece: self._stage(piece, texts.get(piece.key, "")), self._offers.images
        )
        accepted: list[_Staged] = []
        known = _Known(self._dataset)
        for done, result in enumerate(staging, start=1):
            if isinstance(result, Refused):
                self._refused.append(result)
            elif twin := known.twin_of(result):
                self._offers.refuse(result.piece.name, f"is the same file as {twin}")
            else:
                accepted.append(result)
            if progress:
                progress(done, len(self._offers.images))
        labels = sidecars.read_labels(self._dataset / sidecars.LABELS_FILE)
        placed = self._place(accepted, labels)
        self._settle_the_rest(texts, labels)
        return ImportReport(placed, self._captions, tuple(self._refused), tuple(self._notices))

    def _read_captions(self) -> dict[Key, str]:
        """The captions of all images on offer, and those that came without one."""
        texts: dict[Key, str] = {}
        for piece in self._offers.images:
            text = self._offers.texts.get((piece.origin, str(piece.name)))
            if text:
                texts[piece.key] = text
        for key, piece in self._offers.captions.items():
            try:
                caption = captions.read_caption(piece.path, str(piece.name))
            except DatasetError as error:
                self._refused.append(Refused.because(piece.name, error))
                continue
            if caption.guessed:
                name = shown(str(piece.name))
                self._notices.append(f"{name} is not UTF-8; it was read as {caption.encoding}.")
            texts[key] = caption.text
        return texts

    def _stage(self, piece: Piece, caption: str) -> _Staged | Refused:
        """Checks an image and its mask and puts them with the caption into the staging folder."""
        mask = self._offers.masks.get(piece.key)
        try:
            measured = images.measure(piece.path, str(piece.name))
            if mask is not None:
                images.measure(mask.path, str(mask.name))
        except DatasetError as error:
            return Refused.because(piece.name, error)
        image = piece.path if piece.path.parent == self._staging else self._copy(piece.path)
        sync(image)
        caption_file = None
        if caption:
            caption_file = self._staging / f"{image.name}.caption"
            caption_file.write_text(caption + "\n", encoding="utf-8", newline="\n")
            sync(caption_file)
        return _Staged(
            piece=piece,
            image=image,
            suffix=_SUFFIXES[measured.format],
            digest=images.digest(image),
            several=measured.several,
            caption=caption_file,
            mask=None if mask is None else self._copy(mask.path),
        )

    def _copy(self, path: Path) -> Path:
        return shutil.copyfile(path, self._staging / f"copy-{next(self._numbers)}")

    def _place(self, accepted: Sequence[_Staged], labels: Mapping[str, str]) -> tuple[str, ...]:
        """Moves what was accepted into the dataset; returns the images' paths inside it."""
        first = 1 + max((_number(image) for image in image_files(self._dataset)), default=0)
        names = [
            PurePosixPath(_folder_for(staged.piece), f"{number:04d}{staged.suffix}")
            for number, staged in enumerate(accepted, start=first)
        ]
        if not names:
            return ()
        new = {
            str(name): self._label(staged.piece)
            for name, staged in zip(names, accepted, strict=True)
        }
        sidecars.write_labels(self._dataset, {**labels, **new})
        for name, staged in zip(names, accepted, strict=True):
            target = self._dataset / name
            target.parent.mkdir(exist_ok=True)
            # The image last: whoever sees it, sees its caption and mask too.
            if staged.caption is not None:
                staged.caption.replace(target.with_suffix(".txt"))
                self._captions += 1
            if staged.mask is not None:
                staged.mask.replace(target.with_name(f"{target.stem}{MASK_SUFFIX}.png"))
            staged.image.replace(target)
        for folder in {name.parent for name in names}:
            sync(self._dataset / folder)
        several = [self._label(staged.piece) for staged in accepted if staged.several]
        if several:
            self._notices.append(
                f"Only the first picture is used of those with frames or pages: {listed(several)}."
            )
        return tuple(map(str, names))

    def _settle_the_rest(self, texts: Mapping[Key, str], labels: Mapping[str, str]) -> None:
        """Captions that came alone go to earlier images; what finds no image is refused."""
        keys = {piece.key for piece in self._offers.images}
        by_label = defaultdict(list)
        for image, label in labels.items():
            by_label[Path(label).stem].append(image)
        for key, piece in self._offers.captions.items():
            if key in keys or key not in texts:
                continue
            candidates = by_label[shown(piece.name.stem)]
            if len(candidates) == 1:
                write_caption(self._dataset, candidates[0], texts[key])
                self._captions += 1
            elif candidates:
                self._offers.refuse(piece.name, f"fits {len(candidates)} images of that name")
            else:
                self._offers.refuse(piece.name, "is a caption without an image")
        for key, piece in self._offers.masks.items():
            if key not in keys:
                self._offers.refuse(piece.name, "is a mask without an image")

    def _label(self, piece: Piece) -> str:
        """The name that an image came under, or that it already had in a dataset of ours."""
        return self._offers.labels.get((piece.origin, str(piece.name)), shown(piece.name.name))


class _Known:
    """The files in a dataset, and those accepted since, to find copies among new ones."""

    def __init__(self, dataset: Path) -> None:
        self._unread: dict[int, list[Path]] = defaultdict(list)  # by size in bytes
        self._names: dict[bytes, str] = {}  # by digest
        for image in image_files(dataset):
            self._unread[image.stat().st_size].append(image)

    def twin_of(self, staged: _Staged) -> str | None:
        """The name of a file with the same bytes; if there is none, remembers this one."""
        for image in self._unread.pop(staged.image.stat().st_size, []):
            self._names[images.digest(image)] = image.name
        if twin := self._names.get(staged.digest):
            return twin
        self._names[staged.digest] = shown(str(staged.piece.name))
        return None


def _number(image: Path) -> int:
    return int(image.stem) if image.stem.isdecimal() else 0


def _folder_for(piece: Piece) -> str:
    """The sub-folder that keeps an image's repeats; none for most."""
    for parent in piece.name.parents:
        if repeats_in_name(parent.name):
            return re.sub(r"[^\w \-]", "_", parent.name)[:_LONGEST_FOLDER].strip()
    return ""
