"""An adapter baked into a base's weights, with an account of what rounding left of it.

W' = round(W + ΔW), computed in fp32 and rounded once. A ΔW far below the weights' own spacing is
lost in that rounding: bf16 keeps half of one that is a thousandth of the weight. So each layer's
`gain` is measured, and a fuse that would lose the adapter is refused. Never undo one by
subtraction: keep the base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.adapter import algebra
from trainer.adapter.factors import Adapter
from trainer.adapter.fit import mismatch
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
    """What became of an adapter in each layer, without the weights themselves.

    `gain` is of the adapter as one long vector, in which a layer counts by its ‖ΔW‖².
    """

    gain: float
    gains: Mapping[str, float]
    errors: Mapping[str, float]
    unchanged: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """The report as plain values, layer by layer."""
        layers = {
            path: {
                "gain": gain,
                "error": self.errors[path],
                "unchanged": self.unchanged[path],
            }
            for path, gain in self.gains.items()
        }
        return {"gain": self.gain, "doubtful": list(self.doubtful), "layers": layers}

    @property
    def doubtful(self) -> tuple[str, ...]:
        """Layers in which rounding took more than a tenth of the adapter, the worst first."""
        bad = [path for path, error in self.errors.items() if error > WARN_ERROR]
        return tuple(sorted(bad, key=lambda path: -self.errors[path]))

    def to_words(self) -> str:
        """One or two sentences for a person."""
        words = (
            f"Fused {len(self.gains)} layers; the adapter acts at {self.gain:.1%} of its strength."
        )
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

    Several adapters go through `compose.combine` first, so that there is one rounding. A layer that
    loses much is reported; it takes an adapter that is lost as a whole, or a value that overflows,
    to refuse, since a layer that training hardly moved is lost in any format.

    Args:
        weights: the base's, by module path.
        dtype: of the fused weights; by default each keeps its own.

    Raises:
        AdapterError: if the adapter does not fit, a layer is quantised, or rounding would lose it.
    """
    for path in adapter.keys() & weights.keys():  # packed weights have shapes of their own
        _check_number_format(path, weights[path])
    wrong = mismatch(adapter, {path: tuple(weight.shape) for path, weight in weights.items()})
    if wrong:
        raise AdapterError(wrong, "Use the adapter with the base it is made for.")
    fused, gains, errors, unchanged = dict(weights), {}, {}, {}
    kept = whole = 0.0
    for path, layer in adapter.items():
        result = fuse_weight(weights[path], layer.delta(), dtype)
        if not result.finite:
            raise AdapterError(
                f"Fusing makes values that are not finite in {path}.",
                "Fuse in fp32, or at less strength.",
            )
        fused[path] = result.weight
        gains[path], errors[path] = result.gain, result.error
        unchanged[path] = result.unchanged
        energy = algebra.inner(layer, layer)
        kept, whole = kept + result.gain * energy, whole + energy
    gain = kept / whole if whole > 0 else 1.0
    if gain < REFUSE_GAIN:
        raise AdapterError(
            f"Fusing would keep only {gain:.0%} of the adapter: its changes are smaller than the "
            "steps of the number format.",
            "Fuse in fp32, or use the adapter live.",
        )
    return fused, FuseReport(gain, gains, errors, unchanged)


def _check_number_format(path: str, weight: Tensor) -> None:
    # Formats of a byte or less are quantised, whether they are called float or not.
    if not weight.is_floating_point() or weight.element_size() < 2:
        raise AdapterError(
            f"The base's layer {path} is quantised ({weight.dtype}); an adapter fused into it "
            "would be lost.",
            "Fuse into the original weights and quantise again, or use the adapter live.",
        )
