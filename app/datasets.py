"""The datasets in the data directory, by name, and what the pages need to know of them."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.data.dataset import Entry, list_folder
from trainer.data.editing import create_dataset, remove_example, write_caption
from trainer.data.images import is_image_name
from trainer.data.importing import import_files
from trainer.errors import DatasetError

_FILLERS = frozenset({"a", "an", "and", "at", "by", "in", "is", "of", "on", "the", "to", "with"})
_SUGGESTED_PROMPTS = 2


@dataclass(frozen=True)
class Image:
    """An image of a dataset: its path inside the dataset's folder names it."""

    name: str
    caption: str
    changed: int
    """Nanoseconds; part of addresses, so that browsers may keep what has not changed."""


@dataclass(frozen=True)
class Dataset:
    """A dataset as its listing tells it; no image has been opened."""

    name: str
    folder: Path
    images: tuple[Image, ...] = ()
    notices: tuple[str, ...] = ()

    @property
    def without_caption(self) -> int:
        return sum(not image.caption for image in self.images)

    def suggested_trigger(self) -> str:
        """The first telling word that all captions share, if there is one."""
        captions = [_words(image.caption) for image in self.images if image.caption]
        counts = Counter(word for words in captions for word in set(words))
        return next(
            (
                word
                for words in captions[:1]
                for word in words
                if counts[word] == len(captions) > 1 and word not in _FILLERS
            ),
            "",
        )

    def suggested_prompts(self) -> tuple[str, ...]:
        """A few captions to draw samples from, spread over the dataset."""
        captions = [image.caption for image in self.images if image.caption]
        return tuple(dict.fromkeys(captions[:: max(1, len(captions) // _SUGGESTED_PROMPTS)]))[
            :_SUGGESTED_PROMPTS
        ]


class Datasets:
    """The folders in which the datasets lie, one each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._before: dict[str, dict[str, str]] = {}

    def names(self) -> list[str]:
        """All datasets, in alphabetical order."""
        return sorted(
            path.name
            for path in self.folder.iterdir()
            if path.is_dir() and not path.name.startswith(".")
        )

    def path(self, name: str) -> Path:
        """The folder of a dataset; names are looked up, never joined to a path unseen.

        Raises:
            DatasetError: if there is no dataset of that name.
        """
        if name not in self.names():
            raise DatasetError("There is no such dataset.", "It may have been deleted.")
        return self.folder / name

    def read(self, name: str) -> Dataset:
        """A dataset with its images and captions; an empty folder is an empty dataset."""
        folder = self.path(name)
        if not any(_is_content(path.relative_to(folder)) for path in folder.rglob("*")):
            return Dataset(name, folder)
        listing = list_folder(folder)
        problems = tuple(str(problem) for problem in listing.problems)
        images = tuple(_image(folder, entry) for entry in listing.entries)
        return Dataset(name, folder, images, problems + listing.notices)

    def image(self, name: str, image: str) -> Path:
        """The file of one image.

        Raises:
            DatasetError: if the dataset has no such image.
        """
        folder = self.path(name).resolve()
        parts = image.split("/")
        known = is_image_name(image) and not any(part.startswith(".") or not part for part in parts)
        path = folder.joinpath(*parts)
        if not (known and path.is_file() and path.resolve().is_relative_to(folder)):
            raise DatasetError("There is no such image.", "It may have been removed.")
        return path

    def create(self, name: str) -> str:
        """Makes an empty dataset and returns its name.

        Raises:
            DatasetError: if the name cannot be a folder's, or is taken by a dataset.
        """
        return create_dataset(self.folder, name).name

    def create_unnamed(self) -> str:
        """Makes an empty dataset under a name that is free."""
        taken = set(self.names())
        numbered = (f"my images {number}" for number in itertools.count(2))
        return self.create(next(n for n in itertools.chain(("my images",), numbered)
                                if n not in taken))  # fmt: skip

    def take(self, uploads: Sequence[Path], name: str) -> list[str]:
        """Imports uploaded files and removes the uploads; returns what a person should know.

        Raises:
            DatasetError: if there is no such dataset, or it cannot be written.
        """
        names = [upload.name for upload in uploads]
        try:
            return import_files(uploads, names, self.path(name)).to_words().splitlines()
        finally:
            for upload in uploads:
                upload.unlink(missing_ok=True)

    def write_caption(self, name: str, image: str, text: str) -> None:
        """Writes the caption of one image; an empty text is no caption.

        Raises:
            DatasetError: if the dataset has no such image, or it cannot be written.
        """
        write_caption(self.path(name), image, text)

    def rewrite(self, name: str, change: Callable[[str], str]) -> int:
        """Changes all captions of a dataset, remembers them for `undo`, and returns how many
        became others.

        Raises:
            DatasetError: if there is no such dataset, or one cannot be written.
        """
        before = {}
        for image in self.read(name).images:
            caption = change(image.caption)
            if caption != image.caption:
                before[image.name] = image.caption
                self.write_caption(name, image.name, caption)
        if before:
            self._before[name] = before
        return len(before)

    def undo(self, name: str) -> int:
        """Takes the last change of all captions back, and returns how many there were."""
        before = self._before.pop(name, {})
        known = {image.name for image in self.read(name).images}
        for image, caption in before.items():
            if image in known:
                self.write_caption(name, image, caption)
        return len(before)

    def remove(self, name: str, image: str) -> None:
        """Removes one image with its caption.

        Raises:
            DatasetError: if the dataset has no such image, or it cannot be written.
        """
        remove_example(self.path(name), image)


def _image(folder: Path, entry: Entry) -> Image:
    return Image(
        name=entry.image.relative_to(folder).as_posix(),
        caption=entry.caption,
        changed=entry.image.stat().st_mtime_ns,
    )


def _is_content(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return is_image_name(path.name) and not hidden


def _words(caption: str) -> list[str]:
    return re.findall(r"[^\W_][\w'-]*", caption.lower())
