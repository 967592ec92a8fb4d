"""Remembering which images have been decoded, so that thousands are not decoded at every start."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from trainer.data.images import Measured, digest, measure
from trainer.files import write_atomically

Stamp = tuple[int, int, int]
"""Of a file: bytes, and when it and its entry were changed last. An edit changes at least one."""


@dataclass(frozen=True)
class Known:
    """What was found in an image, and the SHA-256 of its file, in hex."""

    measured: Measured
    digest: str


_Table = dict[str, tuple[Stamp, Known]]  # by path, inside the folder or absolute
_TABLE: TypeAdapter[_Table] = TypeAdapter(_Table)


class Checked:
    """What was found when the images of a folder were decoded, kept in a file in a cache folder.

    A cache that is missing, broken or not writable costs time and nothing else. Without a cache
    folder, every image is decoded.
    """

    def __init__(self, folder: Path, cache: Path | None) -> None:
        self._folder = folder
        self._file: Path | None = None
        self._known: _Table = {}
        self._found: _Table = {}
        if cache is not None:
            name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
            self._file = cache / f"checked-{name}.json"
            with contextlib.suppress(OSError, ValueError):
                self._known = _TABLE.validate_python(json.loads(self._file.read_bytes()))

    def measure(self, path: Path) -> Known:
        """What `images.measure` returns and the hash, without reading the file if it is as it was.

        Raises:
            DatasetError: if it cannot be read.
        """
        if self._file is None:
            return _look(path)
        before = _stamp(path)
        inside = path.is_relative_to(self._folder)
        name = str(path.relative_to(self._folder) if inside else path.absolute())
        known = self._known.get(name)
        found = known[1] if known and known[0] == before else _look(path)
        if before is not None:
            self._found[name] = before, found
        return found

    def save(self) -> None:
        """Keeps what has been found for the next time."""
        if self._file is None or self._found == self._known:
            return
        rows = {path: (stamp, asdict(found)) for path, (stamp, found) in self._found.items()}
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, json.dumps(rows).encode())


def _look(path: Path) -> Known:
    measured = measure(path)
    return Known(measured, digest(path).hex())


def _stamp(path: Path) -> Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
