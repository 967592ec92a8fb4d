"""The safetensors container: a file's header read and checked from its first bytes. No torch here.

Layout: 8 bytes little-endian length n, n bytes of JSON (`{name: {dtype, shape, data_offsets}}` and
`__metadata__`), then the tensors' bytes. A header is checked in full before a tensor is touched, so
whatever comes after may trust it.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from trainer.errors import AdapterError

MAX_HEADER_BYTES = 8 * 2**20
MAX_TENSORS = 20_000  # ten times what the largest SDXL adapters have

_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")
_GET_IT_AGAIN = "Get the file again from where it came from."


@dataclass(frozen=True)
class Entry:
    """One tensor: its number format as safetensors spells it, its shape, and where its bytes begin
    after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Container:
    """What a safetensors file says it holds. `start` is where the tensors' bytes begin."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, Entry]
    start: int


def read_container(path: Path) -> Container:
    """The checked header of a safetensors file; reads nothing but the header.

    Raises:
        AdapterError: if the file is missing, is of another kind, is truncated, or its header is
            too large, is not JSON, or does not describe the bytes that follow.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would never end
            raise AdapterError(f"{path} is not a file.", "Give a .safetensors adapter.")
        with path.open("rb") as file:
            length = path.stat().st_size
            text = _header_bytes(path, file, length)
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from None
    # Counted in the bytes, because parsing a million entries takes longer than anyone waits.
    if text.count(b'"data_offsets"') > MAX_TENSORS:
        raise AdapterError(
            f"{path} lists more tensors than the {MAX_TENSORS} that a model has at most.",
            "This is neither an adapter nor a base.",
        )
    tree = _parse(path, text)
    metadata = _metadata(path, tree.pop("__metadata__", {}))
    start = 8 + len(text)
    tensors = _entries(path, tree, length - start)
    return Container(metadata, tensors, start)


def _header_bytes(path: Path, file: BinaryIO, length: int) -> bytes:
    first = file.read(8)
    if len(first) < 8:
        raise AdapterError(f"{path} is empty or cut off.", _GET_IT_AGAIN)
    size = int(struct.unpack("<Q", first)[0])
    opening = file.read(1)
    if opening != b"{":
        raise _another_kind(path, first)
    if size > MAX_HEADER_BYTES:
        raise AdapterError(
            f"{path} has a header of {size} bytes; the limit is {MAX_HEADER_BYTES}.",
            "Save it again with less metadata.",
        )
    if 8 + size > length:
        raise AdapterError(f"{path} is cut off within its header.", _GET_IT_AGAIN)
    return opening + file.read(size - 1)


def _another_kind(path: Path, first: bytes) -> AdapterError:
    # Told only after the brace is missing: a header's length may look like a pickle's first byte.
    if first.startswith((b"PK", b"\x80")):
        return AdapterError(
            f"{path} is a pickle, whatever its name says, and can run any program when opened.",
            "Get the same adapter as .safetensors.",
        )
    return AdapterError(f"{path} is not a safetensors file.", "Give a .safetensors adapter.")


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        tree = dict(pairs)
        if len(tree) < len(pairs):
            raise AdapterError(f"{path} names a tensor twice in its header.", _GET_IT_AGAIN)
        return tree

    try:
        tree = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise AdapterError(f"{path} has a header that is not JSON.", _GET_IT_AGAIN) from None
    if not isinstance(tree, dict) or (_HALF_CHARACTER.search(text) and not _is_text(tree)):
        raise AdapterError(f"{path} has a header that is not a JSON object of text.", _GET_IT_AGAIN)
    return tree


def _metadata(path: Path, tree: object) -> dict[str, str]:
    if not isinstance(tree, dict) or not all(isinstance(value, str) for value in tree.values()):
        raise AdapterError(f"{path} has metadata that is not text.", _GET_IT_AGAIN)
    return tree


def _is_text(tree: object) -> bool:
    """Whether all of a header can be written again: JSON can spell half characters, UTF-8 not."""
    try:
        json.dumps(tree, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _entries(path: Path, tree: dict[str, Any], available: int) -> dict[str, Entry]:
    """Entries whose byte ranges follow one another without gaps up to the end of the file."""
    entries: dict[str, Entry] = {}
    ranges: list[tuple[int, int]] = []
    for name, item in tree.items():
        entry, end = _entry(path, name, item)
        if entry.size * _BYTES[entry.dtype] != end - entry.begin:
            raise AdapterError(
                f"{path}: the shape of {name!r} does not fit its {end - entry.begin} bytes.",
                _GET_IT_AGAIN,
            )
        entries[name] = entry
        ranges.append((entry.begin, end))
    position = 0
    for begin, end in sorted(ranges):
        if begin != position:
            raise AdapterError(f"{path} has tensors that overlap or leave gaps.", _GET_IT_AGAIN)
        position = end
    if position > available:
        raise AdapterError(
            f"{path} is cut off: {position - available} bytes are missing.", _GET_IT_AGAIN
        )
    if position < available:
        raise AdapterError(
            f"{path} has {available - position} bytes that belong to no tensor.", _GET_IT_AGAIN
        )
    return entries


def _entry(path: Path, name: str, item: object) -> tuple[Entry, int]:
    """A tensor's entry, and where its bytes end."""
    match item:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]}:
            if dtype not in _BYTES:
                raise AdapterError(f"{path}: {name!r} has the unknown format {dtype!r}.")
            numbers = [*shape, begin, end]
            # bool is an int to Python, but not a size
            if all(type(number) is int and 0 <= number < 2**48 for number in numbers):
                return Entry(dtype, tuple(shape), begin), end
    raise AdapterError(f"{path}: the header's entry for {name!r} is broken.", _GET_IT_AGAIN)
