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
    entropy = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *indices])
    return torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))
