"""Memory: how much is in use, recognising that it ran out, and settings of the allocator."""

from __future__ import annotations

import ctypes
import gc
import sys

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Tells glibc to keep large freed blocks instead of returning them to the system.

    A step frees and takes the same large blocks again; with the default thresholds each costs page
    faults, about a tenth of a step on a CPU. Does nothing where there is no glibc.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def ran_out(error: BaseException) -> bool:
    """Whether an error means that memory ran out; on a CPU torch raises a plain RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "t allocate mem" in text)


def release() -> None:
    """Gives cached blocks of the GPU back, after something failed for want of memory."""
    gc.collect()
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
    """The memory there is: of the GPU, or of the machine; None where it is not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    if sys.platform == "win32":
        return None
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
