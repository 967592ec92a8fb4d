"""A store of tensors by key, on disk or in memory, for what can be made again.

On disk, an entry is a file that begins with the hash of what follows. One that is cut short or was
changed by a failing disk is therefore noticed, and counts as missing. Entries are read one by one
as they are needed, so that memory does not grow with their number.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from trainer.files import replace_atomically

log = logging.getLogger("atelier")

MOST_BYTES = 20 * 2**30
_DAY = 24 * 60 * 60.0
_HASH_BYTES = hashlib.sha256().digest_size


class Store(Protocol):
    """Tensors by key. A key is a SHA-256 in hex: whatever the tensors depend on must be in it."""

    def has(self, key: str) -> bool:
        """Whether there is such an entry, which counts as using it."""

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The entry; None if there is none, or it is broken. May be called on any thread."""

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keeps an entry."""

    def tidy(self) -> None:
        """Makes room, if entries have been added."""


class MemoryStore:
    """Kept as long as the object lives."""

    def __init__(self) -> None:
        self._entries: dict[str, dict[str, Tensor]] = {}

    def has(self, key: str) -> bool:
        return key in self._entries

    def get(self, key: str) -> dict[str, Tensor] | None:
        return self._entries.get(key)

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        self._entries[key] = {name: tensor.contiguous() for name, tensor in tensors.items()}

    def tidy(self) -> None:
        """Nothing is ever removed."""


class DiskStore:
    """Kept in a folder, which several processes may share; in memory what cannot be written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._unwritten = MemoryStore()
        self._warned = False
        self._added = False

    def has(self, key: str) -> bool:
        try:
            os.utime(self._place(key))  # a string: this is asked for thousands at every start
        except OSError:
            return self._unwritten.has(key)
        return True

    def get(self, key: str) -> dict[str, Tensor] | None:
        try:
            content = self._file(key).read_bytes()
        except OSError:
            return self._unwritten.get(key)
        whole, body = content[:_HASH_BYTES], content[_HASH_BYTES:]
        if hashlib.sha256(body).digest() != whole:
            return None
        with contextlib.suppress(SafetensorError):
            tensors: dict[str, Tensor] = safetensors.torch.load(body)
            return tensors
        return None

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        body = safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()})
        content = hashlib.sha256(body).digest() + body
        file = self._file(key)
        self._added = True
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # Its hash tells whether it is whole, so there is no need to wait for the disk.
            replace_atomically(file, lambda place: place.write_bytes(content), durable=False)
        except OSError as error:
            if not self._warned:
                log.warning("%s cannot be written: %s; using memory", self.folder, error.strerror)
            self._warned = True
            self._unwritten.put(key, tensors)

    def tidy(self) -> None:
        if self._added:
            self.prune()

    def prune(self, most_bytes: int = MOST_BYTES) -> None:
        """Removes the entries that were used longest ago until the others take no more than
        `most_bytes`; never one that was used within a day, which may belong to a run."""
        found = []
        for file in self.folder.glob("??/*"):
            with contextlib.suppress(OSError):
                status = file.stat()
                found.append((status.st_mtime, status.st_size, file))
        spare = sum(size for _, size, _ in found) - most_bytes
        for used, size, file in sorted(found):
            if spare <= 0 or used > time.time() - _DAY:
                break
            with contextlib.suppress(OSError):
                file.unlink()
            spare -= size

    def _file(self, key: str) -> Path:
        return Path(self._place(key))

    def _place(self, key: str) -> str:
        return f"{self.folder}{os.sep}{key[:2]}{os.sep}{key[2:]}"
