"""A layer of any kind as plain factors, the one kind of which any number share a layer."""

from __future__ import annotations

import math

from torch import Tensor

from trainer.adapter.algebra import Cut, dense_spectrum, inner, product_spectrum, truncated
from trainer.adapter.factors import LowRank
from trainer.adapter.kinds import DoRA, Full, Layer


def to_low_rank(
    layer: Layer, cut: Cut | None = None, base_weight: Tensor | None = None
) -> tuple[LowRank, float, float]:
    """A layer of any kind as plain factors, with ‖Δ − Δ'‖² and ‖Δ‖².

    Without a cut the result is exact: LoHa and LoKr at the rank of their own factors where that is
    below the full rank, all else at full rank. DoRA needs the base's weight.

    Raises:
        ValueError: for DoRA without a base weight.
    """
    if isinstance(layer, DoRA):
        if base_weight is None:
            raise ValueError("DoRA has no ΔW without its base's weight")
        layer = Full(layer.delta(base_weight))
    full_rank = min(layer.shape[0], math.prod(layer.shape[1:]))
    if not isinstance(layer, Full) and layer.rank <= full_rank:
        factors = layer if isinstance(layer, LowRank) else layer.factors()
        if cut is None:
            return factors, 0.0, inner(factors, factors)
        spectrum = product_spectrum(factors)
    else:
        spectrum = dense_spectrum(layer.delta())
    low_rank, lost = truncated(spectrum, cut or Cut(), layer.shape[2:])
    return low_rank, lost, spectrum.energy
