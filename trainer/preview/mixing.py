"""Several adapters in one picture: which of them act together, and what their predictions weigh.

* `sum`: all at once, their updates added in every layer. One pass through the UNet.
* `switch`: one at a time, the next one after every few steps (LoRA-Switch). One pass.
* `composite`: each alone, and the mean of what they predict, with and without the prompt, before
  guidance (LoRA-Composite). As many passes as adapters.

Switch and Composite are Zhong et al., 2024, arXiv:2402.16843. Both concern the UNet only: the
prompt is encoded once, with every adapter of the text encoder at its strength, whichever way the
UNet mixes.

A region mask keeps an adapter to a part of the picture: its prediction counts where its mask is
white, and the prediction without it elsewhere. Adapters without a mask act everywhere, those with
equal masks act together, and where masks overlap the changes that they make are added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Mixing = Literal["sum", "switch", "composite"]
SWITCH_EVERY = 5  # steps, as in the authors' program


@dataclass(frozen=True)
class Pass:
    """One prediction of the UNet: the adapters at work in it, and its weight in the mix, a number
    or one for each place [1, 1, h, w]. The weights of all passes add up to 1 everywhere."""

    adapters: tuple[str, ...]
    weight: float | Tensor


def passes(
    mixing: Mixing,
    adapters: Sequence[str],
    masks: Mapping[str, Tensor],
    step: int,
    switch_every: int = SWITCH_EVERY,
) -> tuple[Pass, ...]:
    """The predictions to make at a step, counted from 0, and their weights.

    `masks` has a mask [1, 1, h, w] in [0, 1] for each adapter that is kept to a region.
    """
    weights: dict[tuple[str, ...], float | Tensor] = {}
    for group, share in _groups(mixing, adapters, step, switch_every):
        for part in _regions(group, masks):
            before = weights.get(part.adapters, 0.0)
            weights[part.adapters] = before + share * part.weight
    return tuple(Pass(adapters, weight) for adapters, weight in weights.items())


def blend(predictions: Sequence[tuple[Tensor, float | Tensor]]) -> Tensor:
    """The weighted sum of predictions [B, C, h, w]; a single one comes back as it is."""
    first, weight = predictions[0]
    if len(predictions) == 1:
        return first
    total = first * weight
    for prediction, weight in predictions[1:]:
        total = total + prediction * weight
    return total


def _groups(
    mixing: Mixing, adapters: Sequence[str], step: int, switch_every: int
) -> list[tuple[tuple[str, ...], float]]:
    """Which adapters act together at a step, and the share of each group in the mix."""
    if mixing == "sum" or len(adapters) < 2:
        return [(tuple(adapters), 1.0)]
    if mixing == "switch":
        return [((adapters[step // switch_every % len(adapters)],), 1.0)]
    return [((adapter,), 1 / len(adapters)) for adapter in adapters]


def _regions(adapters: Sequence[str], masks: Mapping[str, Tensor]) -> list[Pass]:
    """The passes for adapters that act together, apart from where they do."""
    everywhere = [adapter for adapter in adapters if adapter not in masks]
    regions: list[tuple[Tensor, list[str]]] = []
    for adapter in adapters:
        if adapter not in masks:
            continue
        same = [names for mask, names in regions if bool((mask == masks[adapter]).all())]
        if same:
            same[0].append(adapter)
        else:
            regions.append((masks[adapter], [adapter]))
    if not regions:
        return [Pass(tuple(everywhere), 1.0)]
    rest = 1 - sum((mask for mask, _ in regions[1:]), start=regions[0][0])
    found = [
        Pass(tuple(name for name in adapters if name in everywhere or name in names), mask)
        for mask, names in regions
        if mask.any()
    ]
    if rest.any():
        found.append(Pass(tuple(everywhere), rest))
    return found
