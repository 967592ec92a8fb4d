"""Changing a dataset: making one, writing captions, removing images.

An image is named by its path inside the dataset, as in `0001.jpg` or `10_cat/0002.png`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import filelock

from trainer.data import captions, sidecars
from trainer.data.dataset import MASK_SUFFIX, is_mask_name, is_visible
from trainer.data.images import is_image_name
from trainer.data.names import shown
from trainer.errors import DatasetError
from trainer.files import write_atomically

_LOCK_FILE = ".lock"
_LOCK_PATIENCE_SECONDS = 600
_LONGEST_NAME = 60
_RESERVED = re.compile(r"^(con|prn|aux|nul|com\d|lpt\d)(\..*)?$", re.IGNORECASE)  # on Windows


def create_dataset(root: Path, name: str) -> Path:
    """Makes the folder of an empty dataset in the folder `root` and returns it.

    Raises:
        DatasetError: if the name is taken or would not do as a folder's on every system.
    """
    name = unicodedata.normalize("NFC", name.strip())
    if not name or len(name) > _LONGEST_NAME:
        raise DatasetError(f"A dataset's name has 1 to {_LONGEST_NAME} characters.")
    if not re.fullmatch(r"[\w .\-]*", name) or name[0] in ".-" or name[-1] == ".":
        raise DatasetError(
            f"{shown(name)} is no name for a dataset.",
            "Use letters, digits, spaces, dots, - and _, beginning with a letter or digit.",
        )
    if _RESERVED.match(name):
        raise DatasetError(f"{name} is a name that Windows keeps for itself.", "Use another.")
    folder = root / name
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise DatasetError(f"There is a dataset {name} already.", "Use another name.") from None
    except OSError as error:
        raise DatasetError(f"The dataset {name} cannot be made: {error.strerror}.") from None
    return folder


def write_caption(dataset: Path, image: str, text: str) -> None:
    """Makes `text` the caption of an image, in a `.txt` file beside it; an empty one is kept too.

    Raises:
        DatasetError: if there is no such image, or the text is no caption or cannot be written.
    """
    path = _find(dataset, image)
    content = (text.strip() + "\n").encode("utf-8", "replace")
    if len(content) > captions.MAX_BYTES:
        raise DatasetError(
            f"A caption has at most {captions.MAX_BYTES // 1024} KiB.", "Shorten this one."
        )
    try:
        captions.decode(content)
    except ValueError as error:
        raise DatasetError(f"This caption is no text: {error}.", "Type it anew.") from None
    try:
        write_atomically(path.with_suffix(".txt"), content)
    except OSError as error:
        raise DatasetError(f"The caption was not saved: {error.strerror}.") from None


def remove_example(dataset: Path, image: str) -> None:
    """Deletes an image with its caption, mask and label.

    Raises:
        DatasetError: if there is no such image, or it cannot be deleted.
    """
    with locked(dataset):
        path = _find(dataset, image)
        path.unlink()
        for companion in companions(path):
            companion.unlink()
        labels = sidecars.read_labels(dataset / sidecars.LABELS_FILE)
        if labels.pop(image, None) is not None:
            sidecars.write_labels(dataset, labels)


def companions(image: Path) -> list[Path]:
    """The captions and the mask that belong to an image, which may be gone, and to no other:
    `a.png` and `a.jpg` share theirs."""
    files = sorted(image.parent.iterdir())
    shared = [f for f in files if f.stem == image.stem and f != image and is_image_name(f.name)]
    if shared:
        return []
    mask = f"{image.stem}{MASK_SUFFIX}"
    return [
        file
        for file in files
        if (file.stem == image.stem and file.suffix.lower() in captions.SUFFIXES)
        or (file.stem == mask and is_mask_name(file.name))
    ]


@contextmanager
def locked(dataset: Path) -> Iterator[None]:
    """Holds a dataset for one writer; inside, failures of the disk become errors that say so.

    Raises:
        DatasetError: if it is missing, cannot be written, or is held for long.
    """
    if not dataset.is_dir():
        raise DatasetError(f"There is no dataset {shown(dataset.name)}.")
    try:
        with filelock.FileLock(dataset / _LOCK_FILE, timeout=_LOCK_PATIENCE_SECONDS):
            yield
    except filelock.Timeout:
        raise DatasetError(
            f"The dataset {shown(dataset.name)} is being changed by something else.",
            "Try again when that is done.",
        ) from None
    except OSError as error:
        raise DatasetError(
            f"The dataset {shown(dataset.name)} cannot be changed: {error.strerror or error}.",
            "It needs a folder that may be written to, on a disk with room.",
        ) from error


def _find(dataset: Path, image: str) -> Path:
    """The file of an image; nothing outside the dataset, and nothing hidden, can be named."""
    parts = PurePosixPath(image).parts
    path = dataset.joinpath(*parts)
    if (
        not is_image_name(image)
        or not all(is_visible(part) and part != "/" for part in parts)
        or not path.is_file()
        or not path.resolve().is_relative_to(dataset.resolve())
    ):
        raise DatasetError(
            f"The dataset {shown(dataset.name)} has no image {shown(image)}.",
            "It may have been removed.",
        )
    return path
