"""What the allocator does with large blocks that are free again, in processes of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

_KEPT = """
import resource, sys
from pathlib import Path
import torch
from trainer.training import memory

def address_space():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if "VmSize" in line) >> 10

if sys.argv[1] == "limited":
    resource.setrlimit(resource.RLIMIT_AS, (1 << 40, resource.RLIM_INFINITY))
memory.keep_freed_memory()
before = address_space()
blocks = [torch.empty(1 << 20) for _ in range(64)]  # 4 MiB each
above = [bytearray(4000) for _ in range(64)]  # so that what is free is not at the heap's end
del blocks
print(address_space() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
@pytest.mark.parametrize(("address_space", "kept"), [("free", True), ("limited", False)])
def test_free_blocks_are_kept_unless_that_would_count_against_a_limit(
    address_space: str, kept: bool
) -> None:
    command = [sys.executable, "-c", _KEPT, address_space]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (int(done.stdout) > 200) == kept
