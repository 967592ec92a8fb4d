"""Writing files whole or not at all; who holds a lock file; how much room is left."""

from __future__ import annotations

import errno
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import filelock

TEMPORARY_SUFFIX = ".partial"

# What names, folders and a few lines in logs take up besides.
_SPARE_BYTES = 1 << 16

# Read once: asking means setting it, which other threads would notice.
_UMASK = os.umask(0)
os.umask(_UMASK)


def cache_folder() -> Path:
    """Where things are kept that can be made again: $ATELIER_CACHE, or else a folder in the place
    where this system keeps caches. It need not exist."""
    if asked := os.environ.get("ATELIER_CACHE"):
        return Path(asked)
    if sys.platform == "win32":
        place = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        place = Path.home() / "Library" / "Caches"
    else:
        place = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(place) / "lora-atelier"


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `content` to `path` so that a reader finds the old file or the new one, never a part.

    The folder must exist. Raises OSError, leaving what was there, if it cannot be written.
    """
    replace_atomically(path, lambda temporary: _write(temporary, content))


def replace_atomically(path: Path, write: Callable[[Path], object], durable: bool = True) -> None:
    """Calls `write(temporary)` for a file beside `path`, syncs it to disk and renames it to `path`.

    The rename is the moment at which the new file exists. A file left over by a killed process
    ends in `.partial`; `sweep` removes such files. What is not `durable` is not waited for: after
    a power cut it may be incomplete.
    """
    handle, name = tempfile.mkstemp(
        prefix=f"{path.name}.", suffix=TEMPORARY_SUFFIX, dir=path.parent
    )
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        if durable:
            sync(temporary)
        # mkstemp makes files private; a finished file gets the mode any other new file would.
        temporary.chmod(0o666 & ~_UMASK)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
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


def held(lock: Path) -> bool:
    """Whether a process holds a lock file, taken by `filelock`.

    Looking takes a shared lock for a moment, so those who look at once do not mistake one another
    for a holder; a process that wants the lock has to try again.
    """
    if not lock.exists():
        return False
    if sys.platform == "win32":
        return _held_each_time(lock)
    import fcntl

    handle = os.open(lock, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _held_each_time(lock: Path) -> bool:
    """Windows has exclusive locks only: two who look may meet, but hardly so often in a row."""
    for _ in range(5):
        probe = filelock.FileLock(lock, blocking=False)
        try:
            probe.acquire()
        except filelock.Timeout:
            time.sleep(random.uniform(0, 0.01))
            continue
        probe.release()
        return False
    return True


def sweep(folder: Path) -> None:
    """Removes the temporary files and folders that killed processes left in `folder` and below."""
    for orphan in list(folder.rglob(f"*{TEMPORARY_SUFFIX}")):
        if orphan.is_dir():
            shutil.rmtree(orphan)
        else:
            orphan.unlink(missing_ok=True)


def require_room(folder: Path, needed: int) -> None:
    """Raises the OSError of a full disk unless `needed` bytes, and some more, are free."""
    if shutil.disk_usage(folder).free < needed + _SPARE_BYTES:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
