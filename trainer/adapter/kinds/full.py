"""A whole difference of a layer's weight, as some files hold it. It is read, never trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trainer.adapter.kinds.kind import Factor, Kind, Parts, Shape, need

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.adapter.kinds import Layer


@dataclass(frozen=True)
class Full:
    """ΔW itself, [out, in(, kh, kw)]."""

    weight: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in) or (out, in, kh, kw)."""
        return tuple(self.weight.shape)

    def delta(self) -> Tensor:
        """ΔW [out, in(, kh, kw)]."""
        return self.weight


class FullKind(Kind):
    """ΔW whole, beginning at zero."""

    name: ClassVar = "full"
    dimensions: ClassVar = {"diff": (2, 4)}

    def factors(self, shape: Shape, rank: int, split: int | None = None) -> dict[str, Factor]:
        return {"diff": Factor(shape, "zero")}

    def read(self, parts: Parts, kernel: int, alpha: float | None) -> Full:
        return Full(*need(parts, "diff"))

    def write(self, layer: Layer, alpha: float) -> dict[str, Tensor]:
        assert isinstance(layer, Full)
        return {"diff": layer.weight.float()}

    def natural(self, layer: Layer) -> None:
        return None
