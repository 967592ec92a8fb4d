"""Randomness as a function of (seed, step, purpose): nothing to save, nothing to restore.

Whatever is drawn for step k is drawn from a generator made for it, so a resumed run sees the same
noise as an uninterrupted one, and sampling or validating in between changes nothing. All draws are
made on the CPU, so they are the same on every device.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch


def generator(seed: int, purpose: str, *indices: int) -> torch.Generator:
    """A CPU generator for one purpose, such as `generator(seed, "noise", step, micro_batch)`.

    Different purposes or indices give independent streams (numpy's SeedSequence mixes them).
    """
    return torch.Generator().manual_seed(number(seed, purpose, *indices))


def number(seed: int, purpose: str, *indices: int) -> int:
    """A number from 0 to 2^63 - 1, for generators made elsewhere: as `generator`, its seed."""
    entropy = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *indices])
    return int(entropy.generate_state(1, np.uint64)[0] >> 1)
