"""LoHa: the entrywise product of two low-rank matrices, of rank r² from factors of rank r.

FedPara (Hyeon-Woo et al., 2021, arXiv:2108.06098), as LyCORIS has it (arXiv:2309.14859).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

from trainer.adapter.factors import LowRank
from trainer.adapter.kinds.kind import (
    Factor,
    Kind,
    Parts,
    Shape,
    from_tucker,
    need,
    product,
    unflatten,
)

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.adapter.kinds import Layer


@dataclass(frozen=True)
class LoHa:
    """ΔW = scale · (up1 @ down1) ∘ (up2 @ down2).

    up [out, r], down [r, in(, kh, kw)], for both.
    """

    up1: Tensor
    down1: Tensor
    up2: Tensor
    down2: Tensor
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in) or (out, in, kh, kw)."""
        return (self.up1.shape[0], *self.down1.shape[1:])

    @property
    def rank(self) -> int:
        """The rank at which `factors` gives ΔW exactly."""
        return self.down1.shape[0] * self.down2.shape[0]

    def delta(self) -> Tensor:
        """ΔW [out, in(, kh, kw)]."""
        return self.scale * product(self.up1, self.down1) * product(self.up2, self.down2)

    def factors(self) -> LowRank:
        """Exactly ΔW at rank r²: the entries of a row multiply pair by pair (Khatri & Rao)."""
        up = (self.up1[:, :, None] * self.up2[:, None]).flatten(1)
        down = (self.down1[:, None] * self.down2[None]).flatten(0, 1)
        return LowRank.of(up, down, self.scale)


class LohaKind(Kind):
    """Begins as LyCORIS': three factors drawn from normal distributions, the last zero."""

    name: ClassVar = "loha"
    dimensions: ClassVar = {
        "hada_w1_a": (2,), "hada_w1_b": (2,), "hada_w2_a": (2,), "hada_w2_b": (2,),
        "hada_t1": (4,), "hada_t2": (4,),
    }  # fmt: skip

    def factors(self, shape: Shape, rank: int, split: int | None = None) -> dict[str, Factor]:
        out, inputs = shape[0], prod(shape[1:])
        return {
            "hada_w1_a": Factor((out, rank), "normal", 0.1),
            "hada_w1_b": Factor((rank, inputs), "normal", 1.0),
            "hada_w2_a": Factor((out, rank), "zero"),
            "hada_w2_b": Factor((rank, inputs), "normal", 1.0),
        }

    def read(self, parts: Parts, kernel: int, alpha: float | None) -> LoHa:
        up1, down1, up2, down2 = need(parts, "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        rank = down1.shape[0]
        if "hada_t1" in parts or "hada_t2" in parts:
            core1, core2 = need(parts, "hada_t1", "hada_t2")
            up1, down1 = from_tucker(core1, up1, down1)
            up2, down2 = from_tucker(core2, up2, down2)
        else:
            down1, down2 = unflatten(down1, kernel), unflatten(down2, kernel)
        if up1.shape[0] != up2.shape[0] or down1.shape[1:] != down2.shape[1:]:
            raise ValueError("has two products of different shapes")
        if up1.shape[1] != down1.shape[0] or up2.shape[1] != down2.shape[0]:
            raise ValueError("has factors of different ranks")
        return LoHa(up1, down1, up2, down2, 1.0 if alpha is None else alpha / rank)

    def write(self, layer: Layer, alpha: float) -> dict[str, Tensor]:
        assert isinstance(layer, LoHa)
        rest = layer.scale * layer.down1.shape[0] / alpha
        return {
            "hada_w1_a": layer.up1.float() * rest,
            "hada_w1_b": layer.down1.float().flatten(1),
            "hada_w2_a": layer.up2.float(),
            "hada_w2_b": layer.down2.float().flatten(1),
        }

    def natural(self, layer: Layer) -> tuple[int, float]:
        assert isinstance(layer, LoHa)
        rank = layer.down1.shape[0]
        return rank, layer.scale * rank
