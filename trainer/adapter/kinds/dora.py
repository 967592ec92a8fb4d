"""DoRA: a direction learned apart from its magnitude (Liu et al., 2024, arXiv:2402.09353).

Trained with a magnitude for each input channel: of the two axes that files use, the one that
ComfyUI and Forge apply exactly. diffusers drops the magnitudes with a warning, whatever their axis;
`atelier convert` makes a plain LoRA for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trainer.adapter.kinds.kind import Factor, Kind, Parts, Shape
from trainer.adapter.kinds.lora import LoraKind

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainer.adapter.kinds import Additive, Layer
    from trainer.adapter.layers import AdapterLayer

_TINY = 1e-7
_LORA = LoraKind()


@dataclass(frozen=True)
class DoRA:
    """W' = (W + Δ) · magnitude / ‖W + Δ‖: a direction learned apart from its magnitude.

    The shape of `magnitude` says what has a norm of its own: [1, in(, 1, 1)] each input channel,
    [out, 1(, 1, 1)] each output channel. What it adds to W depends on W.
    """

    direction: Additive
    magnitude: Tensor

    def gain(self, merged: Tensor) -> Tensor:
        """magnitude / ‖W + Δ‖ for W + Δ [out, in(, kh, kw)], in the magnitude's own dimensions."""
        norms = channel_norms(merged, 1 if self.magnitude.shape[0] == 1 else 0)
        return self.magnitude.reshape(norms.shape) / norms.clamp(min=_TINY)

    def delta(self, base_weight: Tensor) -> Tensor:
        """W' − W for the base's weight W [out, in(, kh, kw)]."""
        weight = base_weight.float()
        merged = weight + self.direction.delta().reshape(weight.shape)
        return merged * self.gain(merged) - weight


class DoraKind(Kind):
    """LoRA's factors, and magnitudes that begin as the norms of the base's input channels."""

    name: ClassVar = "dora"
    dimensions: ClassVar = {"dora_scale": (1, 2, 4), "magnitude": (1, 2, 4)}
    wide = frozenset({"dora_scale"})  # rounding them would move the base's own weight

    def factors(self, shape: Shape, rank: int, split: int | None = None) -> dict[str, Factor]:
        magnitude = Factor((1, shape[1], *[1] * (len(shape) - 2)), "norms")
        return {**_LORA.factors(shape, rank), "dora_scale": magnitude}

    def read(self, parts: Parts, kernel: int, alpha: float | None) -> DoRA:
        from trainer.adapter.kinds import direction

        magnitudes = {role: parts[role] for role in ("dora_scale", "magnitude") if role in parts}
        rest = {role: tensor for role, tensor in parts.items() if role not in magnitudes}
        additive = direction(rest).read(rest, kernel, alpha)
        assert not isinstance(additive, DoRA)
        return DoRA(additive, _shaped(magnitudes, additive.shape))

    def write(self, layer: Layer, alpha: float) -> dict[str, Tensor]:
        from trainer.adapter.kinds import kind_of

        assert isinstance(layer, DoRA)
        parts = kind_of(layer.direction).write(layer.direction, alpha)
        return {**parts, "dora_scale": layer.magnitude.float()}

    def natural(self, layer: Layer) -> tuple[int, float] | None:
        from trainer.adapter.kinds import kind_of

        assert isinstance(layer, DoRA)
        return kind_of(layer.direction).natural(layer.direction)

    def trainable(
        self, base: nn.Module, tensors: Mapping[str, Tensor], alpha: float
    ) -> AdapterLayer:
        from trainer.adapter.layers import DoraLayer, wrap

        direction = wrap(base, tensors["down"], tensors["up"], None)
        direction.alpha = alpha
        return DoraLayer(direction, tensors["dora_scale"])


def channel_norms(weight: Tensor, channel: int) -> Tensor:
    """The norms of the slices of a weight [out, in(, kh, kw)] along a dimension, which is kept."""
    others = [dim for dim in range(weight.dim()) if dim != channel]
    return weight.square().sum(others, keepdim=True).sqrt()


def _shaped(magnitudes: Parts, shape: Shape) -> Tensor:
    """The magnitudes of a weight of `shape`, in dimensions that tell their axis."""
    ones = [1] * (len(shape) - 2)
    if "magnitude" in magnitudes:  # PEFT: always the output's, in several shapes
        magnitude = magnitudes["magnitude"].reshape(-1, 1, *ones)
    else:
        magnitude = magnitudes["dora_scale"]
        across = magnitude.shape[0] == 1 and magnitude.dim() > 1
        magnitude = magnitude.reshape(1, -1, *ones) if across else magnitude.reshape(-1, 1, *ones)
    wanted = shape[1] if magnitude.shape[0] == 1 and magnitude.shape[1] > 1 else shape[0]
    if magnitude.numel() != wanted:
        raise ValueError(f"has {magnitude.numel()} magnitudes for a weight of {tuple(shape)}")
    return magnitude
