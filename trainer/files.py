"""Writing files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

TEMPORARY_SUFFIX = ".partial"

# Read once: asking means setting it, which other threads would notice.
_UMASK = os.umask(0)
os.umask(_UMASK)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `content` to `path` so that a reader finds the old file or the new one, never a part.

    The folder must exist. Raises OSError, leaving what was there, if it cannot be written.
    """
    replace_atomically(path, lambda temporary: _write(temporary, content))


def replace_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write(temporary)` for a file beside `path`, syncs it to disk and renames it to `path`.

    The rename is the moment at which the new file exists. A file left over by a killed process
    ends in `.partial`; `sweep` removes such files.
    """
    handle, name = tempfile.mkstemp(
        prefix=f"{path.name}.", suffix=TEMPORARY_SUFFIX, dir=path.parent
    )
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        sync(temporary)
        # mkstemp makes files private; a finished file gets the mode any other new file would.
        temporary.chmod(0o666 & ~_UMASK)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's entries, are on the disk."""
    if path.is_dir():
        if os.name == "nt":  # Windows cannot open a folder; its renames are journalled
            return
        flags = os.O_RDONLY
    else:
        flags = os.O_RDWR
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path) -> None:
    """Removes the temporary files that killed processes left in `folder` and below."""
    for orphan in folder.rglob(f"*{TEMPORARY_SUFFIX}"):
        if orphan.is_file():
            orphan.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
