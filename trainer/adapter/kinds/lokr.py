"""LoKr: the Kronecker product of a small matrix and a large, low-rank one, for tiny files.

LyCORIS (Yeh et al., 2023, arXiv:2309.14859).
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
    check_size,
    from_tucker,
    need,
    product,
    unflatten,
)

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.adapter.kinds import Layer


@dataclass(frozen=True)
class LoKr:
    """ΔW = scale · left ⊗ (up @ down), the Kronecker product of a small matrix and a low-rank one.

    left [a, b], up [c, r], down [r, d(, kh, kw)]; ΔW [a·c, b·d(, kh, kw)]. A second matrix that the
    file holds whole is `down`, and `up` is None.
    """

    left: Tensor
    up: Tensor | None
    down: Tensor
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in) or (out, in, kh, kw)."""
        rows, columns = self.left.shape
        inputs, *kernel = self.down.shape[1:]
        outputs = self.down.shape[0] if self.up is None else self.up.shape[0]
        return (rows * outputs, columns * inputs, *kernel)

    @property
    def rank(self) -> int:
        """The rank at which `factors` gives ΔW exactly."""
        return min(self.left.shape) * self.down.shape[0]

    def delta(self) -> Tensor:
        """ΔW [out, in(, kh, kw)]."""
        right = self.down if self.up is None else product(self.up, self.down)
        return self.scale * kronecker(self.left, right)

    def factors(self) -> LowRank:
        """Exactly ΔW at rank min(a, b)·r, by (L₁L₂) ⊗ (UD) = (L₁ ⊗ U)(L₂ ⊗ D)."""
        rows, columns = self.left.shape
        up = _identity(self.left, self.down.shape[0]) if self.up is None else self.up
        thin = rows > columns
        first = self.left if thin else _identity(self.left, rows)
        second = _identity(self.left, columns) if thin else self.left
        return LowRank.of(kronecker(first, up), kronecker(second, self.down), self.scale)


class LokrKind(Kind):
    """Begins as LyCORIS': the small matrix and down uniform in ±1/√fan_in, up zero.

    Where two factors of the rank would be no smaller than the large matrix, it is trained whole.
    """

    name: ClassVar = "lokr"
    dimensions: ClassVar = {
        "lokr_w1": (2,), "lokr_w1_a": (2,), "lokr_w1_b": (2,),
        "lokr_w2": (2, 4), "lokr_w2_a": (2,), "lokr_w2_b": (2,), "lokr_t2": (4,),
    }  # fmt: skip

    def factors(self, shape: Shape, rank: int, split: int | None = None) -> dict[str, Factor]:
        rows, outputs = factorization(shape[0], split)
        columns, inputs = factorization(shape[1], split)
        flat = prod((inputs, *shape[2:]))
        left = Factor((rows, columns), "uniform", columns**-0.5)
        if rank >= max(outputs, inputs) / 2:
            return {"lokr_w1": left, "lokr_w2": Factor((outputs, inputs, *shape[2:]), "zero")}
        return {
            "lokr_w1": left,
            "lokr_w2_a": Factor((outputs, rank), "zero"),
            "lokr_w2_b": Factor((rank, flat), "uniform", flat**-0.5),
        }

    def read(self, parts: Parts, kernel: int, alpha: float | None) -> LoKr:
        left, left_rank = _left(parts)
        up, down = _right(parts, kernel)
        if up is not None and up.shape[1] != down.shape[0]:
            raise ValueError("has factors of different ranks")
        rank = left_rank if up is None else down.shape[0]
        # With both matrices whole there is no rank, and LyCORIS ignores alpha.
        return LoKr(left, up, down, alpha / rank if alpha is not None and rank else 1.0)

    def write(self, layer: Layer, alpha: float) -> dict[str, Tensor]:
        assert isinstance(layer, LoKr)
        left, down = layer.left.float(), layer.down.float()
        if layer.up is None:
            return {"lokr_w1": left * layer.scale, "lokr_w2": down}
        rest = layer.scale * down.shape[0] / alpha
        return {
            "lokr_w1": left * rest,
            "lokr_w2_a": layer.up.float(),
            "lokr_w2_b": down.flatten(1),
        }

    def natural(self, layer: Layer) -> tuple[int, float] | None:
        assert isinstance(layer, LoKr)
        rank = layer.down.shape[0]
        return None if layer.up is None else (rank, layer.scale * rank)


def factorization(size: int, split: int | None = None) -> tuple[int, int]:
    """Two divisors whose product is `size`, the smaller first: as near each other as can be, or the
    smaller one at most `split`, as LyCORIS has it."""
    if split is not None and size % split == 0 and size >= split**2:
        return split, size // split
    largest = min(int(size**0.5), split or size)
    small = next(n for n in range(largest, 0, -1) if size % n == 0)
    return small, size // small


def kronecker(left: Tensor, right: Tensor) -> Tensor:
    """[a, b] ⊗ [c, d, …] -> [a·c, b·d, …]."""
    rest = [1] * (right.dim() - 2)
    spread = left.reshape(left.shape[0], 1, left.shape[1], 1, *rest) * right[None, :, None]
    return spread.flatten(0, 1).flatten(1, 2)


def _identity(like: Tensor, size: int) -> Tensor:
    return like.new_zeros(size, size).fill_diagonal_(1.0)


def _left(parts: Parts) -> tuple[Tensor, int | None]:
    if "lokr_w1" in parts:
        return parts["lokr_w1"], None
    first, second = need(parts, "lokr_w1_a", "lokr_w1_b")
    check_size(first.shape[0], second.shape[-1])
    return first @ second, second.shape[0]


def _right(parts: Parts, kernel: int) -> tuple[Tensor | None, Tensor]:
    if "lokr_w2" in parts:
        return None, parts["lokr_w2"]
    up, down = need(parts, "lokr_w2_a", "lokr_w2_b")
    if "lokr_t2" in parts:
        return from_tucker(parts["lokr_t2"], up, down)
    return up, unflatten(down, kernel)
