"""An adapter baked into a base's weights, with an account of what rounding left of it.

W' = round(W + ΔW), computed in fp32 and rounded once. A ΔW far below the weights' own spacing is
lost in that rounding: bf16 keeps half of one that is a thousandth of the weight. So each layer's
`gain` is measured, and a fuse that would lose the adapter is refused. Never undo one by
subtraction: keep the base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.adapter.factors import Adapter
from trainer.errors import AdapterError

WARN_ERROR = 0.1
REFUSE_GAIN = 0.95


@dataclass(frozen=True)
class Fused:
    """One weight with an adapter in it; D is what its values really changed by.

    Attributes:
        gain: ⟨D, ΔW⟩ / ⟨ΔW, ΔW⟩, 1 where the adapter acts at its full strength.
        error: ‖D − ΔW‖ / ‖ΔW‖.
        unchanged: share of the entries that the rounding left as they were.
        finite: false if a value overflowed.
    """

    weight: Tensor
    gain: float
    error: float
    unchanged: float
    finite: bool

    @property
    def refused(self) -> bool:
        return not self.finite or self.gain < REFUSE_GAIN

    @property
    def doubtful(self) -> bool:
        return self.refused or self.error > WARN_ERROR


def fuse_weight(weight: Tensor, delta: Tensor, dtype: torch.dtype | None = None) -> Fused:
    """W + ΔW in `dtype`, or in the weight's own, with what became of ΔW.

    Args:
        weight, delta: [out, in(, kh, kw)], of the same number of entries.
    """
    wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    delta = delta.to(wide.device, wide.dtype).reshape(wide.shape)
    fused = (wide + delta).to(dtype or weight.dtype)
    change = fused.to(wide.dtype) - wide
    size = float(delta.double().square().sum())
    finite = bool(torch.isfinite(fused).all())
    if size == 0 or not finite:
        return Fused(fused, 1.0 if finite else 0.0, 0.0 if finite else 1.0, 1.0, finite)
    gain = float((change.double() * delta.double()).sum()) / size
    error = (float((change - delta).double().square().sum()) / size) ** 0.5
    unchanged = float((change == 0).double().mean())
    return Fused(fused, gain, error, unchanged, finite)


@dataclass(frozen=True)
class FuseReport:
    """What became of an adapter in each layer, without the weights themselves."""

    gains: Mapping[str, float]
    errors: Mapping[str, float]
    unchanged: Mapping[str, float]

    @property
    def doubtful(self) -> tuple[str, ...]:
        """Layers in which rounding took more than a tenth of the adapter, the worst first."""
        bad = [path for path, error in self.errors.items() if error > WARN_ERROR]
        return tuple(sorted(bad, key=lambda path: -self.errors[path]))

    def to_words(self) -> str:
        """One or two sentences for a person."""
        gain = sum(self.gains.values()) / len(self.gains)
        words = f"Fused {len(self.gains)} layers; the adapter acts at {gain:.1%} of its strength."
        if self.doubtful:
            worst = self.doubtful[0]
            words += (
                f" Rounding took more than a tenth of it in {len(self.doubtful)} layers, most in "
                f"{worst} ({self.errors[worst]:.0%}); fp32 would keep all."
            )
        return words


def fuse(
    weights: Mapping[str, Tensor], adapter: Adapter, dtype: torch.dtype | None = None
) -> tuple[dict[str, Tensor], FuseReport]:
    """Weights with an adapter in them, and the report; the others stay the same tensors.

    Several adapters go through `compose.combine` first, so that there is one rounding.

    Args:
        weights: the base's, by module path.
        dtype: of the fused weights; by default each keeps its own.

    Raises:
        AdapterError: if a layer is missing, is quantised, or would lose the adapter in rounding.
    """
    fused, gains, errors, unchanged = dict(weights), {}, {}, {}
    for path, layer in adapter.items():
        if path not in weights:
            raise AdapterError(
                f"The base has no layer {path}.", "Use the adapter with the base it is made for."
            )
        _check_number_format(path, weights[path])
        result = fuse_weight(weights[path], layer.delta(), dtype)
        if result.refused:
            raise _refusal(path, result)
        fused[path] = result.weight
        gains[path], errors[path] = result.gain, result.error
        unchanged[path] = result.unchanged
    return fused, FuseReport(gains, errors, unchanged)


def _check_number_format(path: str, weight: Tensor) -> None:
    # Formats of a byte or less are quantised, whether they are called float or not.
    if not weight.is_floating_point() or weight.element_size() < 2:
        raise AdapterError(
            f"The base's layer {path} is quantised ({weight.dtype}); an adapter fused into it "
            "would be lost.",
            "Fuse into the original weights and quantise again, or use the adapter live.",
        )


def _refusal(path: str, result: Fused) -> AdapterError:
    if not result.finite:
        return AdapterError(
            f"Fusing makes values that are not finite in {path}.", "Fuse in fp32, at less strength."
        )
    return AdapterError(
        f"Fusing would keep only {result.gain:.0%} of the adapter in {path}, because "
        f"{str(result.weight.dtype).removeprefix('torch.')} is too coarse for so small a change.",
        "Fuse in fp32, or use the adapter live.",
    )
