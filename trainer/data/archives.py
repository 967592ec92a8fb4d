"""Unpacking zips from anywhere: names are only labels, and no more is read than was promised.

Nothing is ever written under a name that an archive chose, so a member called `../../x` is merely
oddly named. Sizes in an archive's directory are not believed: bytes are counted as they come.
"""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from trainer.data.captions import decode
from trainer.data.names import shown
from trainer.errors import DatasetError

MAX_MEMBERS = 20_000
MAX_BYTES = 8 * 2**30
"""Of all members together, unpacked."""
MAX_RATIO = 100
"""Unpacked to packed size. Photographs hardly shrink; bombs shrink a thousand times."""

# A blank bitmap shrinks like a bomb, but is small.
_RATIO_FREE_BYTES = 16 * 2**20
_RATIO_FREE_BYTES_IN_ALL = 256 * 2**20
_CHUNK = 2**20
_UTF8_NAME, _ENCRYPTED = 0x800, 0x1  # bits of a member's flags
_IGNORED_PARTS = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})


class RefusedError(Exception):
    """Why one member is not taken, as the end of a sentence that begins with its name."""


@dataclass(frozen=True)
class Member:
    """A file in an archive. `name` is the path that it claims."""

    name: str
    info: zipfile.ZipInfo


class Archive:
    """An opened zip; counts what is read of it."""

    def __init__(self, path: Path, label: str, opened: zipfile.ZipFile) -> None:
        self._label = label
        self._zip = opened
        self._packed = path.stat().st_size
        self._read = 0

    def members(self) -> list[Member]:
        """Its files, in the order of the archive, without folders and hidden files.

        Raises:
            DatasetError: if there are too many.
        """
        infos = self._zip.infolist()
        if len(infos) > MAX_MEMBERS:
            raise DatasetError(
                f"{shown(self._label)} holds {len(infos):,} files; {MAX_MEMBERS:,} are allowed.",
                "Split it.",
            )
        named = [Member(_name(info), info) for info in infos if not info.is_dir()]
        return [member for member in named if not _is_hidden(member.name)]

    def extract(self, member: Member, target: BinaryIO, limit: int) -> None:
        """Writes a member's bytes, at most `limit` of them, to `target`.

        Raises:
            RefusedError: if the member is a link, encrypted, broken, or unpacks to too much.
            DatasetError: if the archive as a whole does.
            OSError: if `target` cannot be written.
        """
        if stat.S_ISLNK(member.info.external_attr >> 16):
            raise RefusedError("is a link, and links in a zip are not followed")
        if member.info.flag_bits & _ENCRYPTED:
            raise RefusedError("is encrypted; unpack the zip yourself")
        count = 0
        for chunk in self._chunks(member):
            count += len(chunk)
            self._read += len(chunk)
            if count > limit:
                raise RefusedError(f"has more than {limit / 2**20:,.2g} MiB")
            if _is_bomb(count, member.info.compress_size, _RATIO_FREE_BYTES):
                raise RefusedError(f"unpacks to over {MAX_RATIO} times its size, as bombs do")
            if self._read > MAX_BYTES or _is_bomb(
                self._read, self._packed, _RATIO_FREE_BYTES_IN_ALL
            ):
                raise DatasetError(
                    f"{shown(self._label)} unpacks to over {self._read / 2**20:,.0f} MiB "
                    "and was not read to its end.",
                    "Give the images themselves.",
                )
            target.write(chunk)

    def _chunks(self, member: Member) -> Iterator[bytes]:
        try:
            with self._zip.open(member.info) as source:
                while chunk := source.read(_CHUNK):
                    yield chunk
        # Decompressors fed with hostile bytes raise many things (zlib.error, LZMAError, EOFError,
        # NotImplementedError, BadZipFile, ...); each means that this member cannot be read.
        except Exception as error:
            raise RefusedError(f"cannot be unpacked: {shown(str(error) or repr(error))}") from error


@contextmanager
def open_archive(path: Path, label: str) -> Iterator[Archive]:
    """The zip at `path`, called `label` in messages.

    Raises:
        DatasetError: if it is no zip, or broken.
    """
    try:
        opened = zipfile.ZipFile(path)
    except Exception as error:  # see `_chunks`
        raise DatasetError(
            f"{shown(label)} is not a zip that can be read: {shown(str(error))}.", "Make it anew."
        ) from error
    with opened:
        yield Archive(path, label, opened)


def _is_bomb(unpacked: int, packed: int, free: int) -> bool:
    return unpacked > free and unpacked > MAX_RATIO * max(packed, 1)


def _name(info: zipfile.ZipInfo) -> str:
    """The member's path as its author wrote it; old tools store bytes that say not in what."""
    name = info.filename
    if not info.flag_bits & _UTF8_NAME:
        try:
            name, _ = decode(name.encode("cp437"))  # as zipfile read it
        except ValueError:
            name = info.filename
    return name


def _is_hidden(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return any(
        part in _IGNORED_PARTS or (part.startswith(".") and part not in (".", ".."))
        for part in parts
    )
