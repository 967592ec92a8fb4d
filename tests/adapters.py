"""Adapters with random factors, for tests."""

from __future__ import annotations

import torch

from trainer.adapter.adapter import Adapter, LowRank
from trainer.adapter.attach import Parts, select
from trainer.adapter.kinds import KINDS
from trainer.adapter.layers import shape_of


def random_adapter(parts: Parts, seed: int = 0, rank: int = 3, size: float = 0.3) -> Adapter:
    """An adapter on all attention layers, far from zero."""
    draws = torch.Generator().manual_seed(seed)
    adapter = {}
    for path, slot in select(parts, "attention").items():
        factors = KINDS["lora"].factors(shape_of(slot.layer), rank)
        adapter[path] = LowRank(
            torch.randn(factors["down"].shape, generator=draws) * size,
            torch.randn(factors["up"].shape, generator=draws) * size,
            float(rank),
        )
    return adapter
