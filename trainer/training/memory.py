"""Memory: how much is in use, how much there is, and settings of the allocator."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE_BYTES = 1 << 17


def keep_freed_memory() -> None:
    """Tells glibc to keep large freed blocks instead of returning them to the system.

    A step frees and takes the same large blocks again; with the default thresholds each costs page
    faults, about a tenth of a step on a CPU. Where the address space is limited (`ulimit -v`), what
    is kept would count although nobody uses it, so there each block goes back at once. Does nothing
    where there is no glibc.
    """
    if sys.platform != "linux":
        return
    import resource

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        return
    mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def release() -> None:
    """Gives what is free back to the GPU and to the system, after something failed for want of
    memory: what is to come may need it in other pieces, or in other hands than the allocator's."""
    gc.collect()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_bytes(device: torch.device) -> int | None:
    """The most memory in use so far: of the GPU, or of the process; None where it is not known."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def total_bytes(device: torch.device) -> int | None:
    """The memory there is: of the GPU, or of the machine or the container that this runs in; None
    where it is not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    if sys.platform == "win32":
        return None
    import os

    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(machine, int(text)) if text.isdecimal() else machine
