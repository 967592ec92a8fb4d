"""LoRA: ΔW = (alpha / rank) · up @ down (Hu et al., 2021, arXiv:2106.09685)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from trainer.adapter.factors import LowRank
from trainer.adapter.kinds.kind import Factor, Kind, Parts, Shape, core_times, need, words

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainer.adapter.kinds import Layer
    from trainer.adapter.layers import AdapterLayer


class LoraKind(Kind):
    """down uniform in ±1/√fan_in (Kaiming with a = √5), up zero."""

    name: ClassVar = "lora"
    dimensions: ClassVar = {"down": (2, 4), "up": (2, 4), "mid": (4,)}

    def factors(self, shape: Shape, rank: int, split: int | None = None) -> dict[str, Factor]:
        down = Factor((rank, *shape[1:]), "uniform", Factor(shape[1:], "zero").count ** -0.5)
        return {"down": down, "up": Factor((shape[0], rank, *[1] * (len(shape) - 2)), "zero")}

    def read(self, parts: Parts, kernel: int, alpha: float | None) -> LowRank:
        down, up = need(parts, "down", "up")
        if "mid" in parts:
            # Tucker form (LoCon): a 1×1 down, a k×k core, a 1×1 up. Core and down make one down.
            down = core_times(parts["mid"], down.flatten(1))
        if up.shape[1] != down.shape[0] or up.shape[2:].numel() != 1:
            raise ValueError(f"has factors that do not fit: {words(down)} and {words(up)}")
        up = up.reshape(*up.shape[:2], *([1, 1] if down.dim() == 4 else []))
        return LowRank(down, up, float(down.shape[0]) if alpha is None else alpha)

    def write(self, layer: Layer, alpha: float) -> dict[str, Tensor]:
        assert isinstance(layer, LowRank)
        # up · alpha/A at scale A/r is up at scale alpha/r
        return {"up": layer.up.float() * (layer.alpha / alpha), "down": layer.down.float()}

    def natural(self, layer: Layer) -> tuple[int, float]:
        assert isinstance(layer, LowRank)
        return layer.rank, layer.alpha

    def trainable(
        self, base: nn.Module, tensors: Mapping[str, Tensor], alpha: float
    ) -> AdapterLayer:
        from trainer.adapter.layers import wrap

        layer = wrap(base, tensors["down"], tensors["up"], None)
        layer.alpha = alpha
        return layer
