"""Adapters with random factors, for tests."""

from __future__ import annotations

import torch

from trainer.adapter.adapter import Adapter, LowRank
from trainer.adapter.attach import Parts, select
from trainer.adapter.layers import factor_shapes


def random_adapter(parts: Parts, seed: int = 0, rank: int = 3, size: float = 0.3) -> Adapter:
    """An adapter on all attention layers, far from zero."""
    draws = torch.Generator().manual_seed(seed)
    adapter = {}
    for path, slot in select(parts, "attention").items():
        down, up = factor_shapes(slot.layer, rank)
        adapter[path] = LowRank(
            torch.randn(down, generator=draws) * size,
            torch.randn(up, generator=draws) * size,
            float(rank),
        )
    return adapter
