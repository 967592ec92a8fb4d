"""The other kinds of adapter that files hold, and their plain low-rank form.

LoHa and LoKr (LyCORIS: Yeh et al., 2023, arXiv:2309.14859; LoHa after FedPara, arXiv:2108.06098),
full differences, and DoRA (Liu et al., 2024, arXiv:2402.09353). Every kind gives its ΔW;
`to_low_rank` turns it into the one kind that our layers compute, exactly unless asked otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.adapter.algebra import Cut, dense_spectrum, inner, product_spectrum, truncated
from trainer.adapter.factors import LowRank


@dataclass(frozen=True)
class LoHa:
    """ΔW = scale · (up1 @ down1) ∘ (up2 @ down2), the entrywise product of two low-rank matrices.

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
        one = torch.einsum("or,r...->o...", self.up1, self.down1)
        two = torch.einsum("or,r...->o...", self.up2, self.down2)
        return self.scale * one * two

    def factors(self) -> LowRank:
        """Exactly ΔW at rank r²: the entries of a row multiply pair by pair (Khatri & Rao)."""
        up = torch.einsum("or,os->ors", self.up1, self.up2).flatten(1)
        down = torch.einsum("r...,s...->rs...", self.down1, self.down2).flatten(0, 1)
        return _low_rank(up, down, self.scale)


@dataclass(frozen=True)
class LoKr:
    """ΔW = scale · left ⊗ (up @ down), the Kronecker product of a small matrix and a low-rank one.

    left [a, b], up [c, r], down [r, d(, kh, kw)]; ΔW [a·c, b·d(, kh, kw)]. A second matrix that the
    file holds whole is `down` with the identity as `up`.
    """

    left: Tensor
    up: Tensor
    down: Tensor
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in) or (out, in, kh, kw)."""
        rows, columns = self.left.shape
        inputs, *kernel = self.down.shape[1:]
        return (rows * self.up.shape[0], columns * inputs, *kernel)

    @property
    def rank(self) -> int:
        """The rank at which `factors` gives ΔW exactly."""
        return min(self.left.shape) * self.down.shape[0]

    def delta(self) -> Tensor:
        """ΔW [out, in(, kh, kw)]."""
        right = torch.einsum("cr,rd...->cd...", self.up, self.down)
        return self.scale * _kronecker(self.left, right)

    def factors(self) -> LowRank:
        """Exactly ΔW at rank min(a, b)·r, by (L₁L₂) ⊗ (UD) = (L₁ ⊗ U)(L₂ ⊗ D)."""
        rows, columns = self.left.shape
        thin = rows > columns
        first = self.left if thin else torch.eye(rows)
        second = torch.eye(columns) if thin else self.left
        return _low_rank(_kronecker(first, self.up), _kronecker(second, self.down), self.scale)


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


Additive = LowRank | LoHa | LoKr | Full


@dataclass(frozen=True)
class DoRA:
    """W' = (W + Δ) · magnitude / ‖W + Δ‖: a direction learned apart from its magnitude.

    The shape of `magnitude` says what has a norm of its own: [1, in(, 1, 1)] each input channel,
    [out, 1(, 1, 1)] each output channel. What it adds to W depends on W.
    """

    direction: Additive
    magnitude: Tensor

    def delta(self, base_weight: Tensor) -> Tensor:
        """W' − W for the base's weight W [out, in(, kh, kw)]."""
        weight = base_weight.float()
        merged = weight + self.direction.delta().reshape(weight.shape)
        channel = 1 if self.magnitude.shape[0] == 1 else 0
        others = [dim for dim in range(weight.dim()) if dim != channel]
        norms = torch.linalg.vector_norm(merged, dim=others, keepdim=True)
        size = self.magnitude.reshape(norms.shape)
        gain: Tensor = size / norms.clamp(min=torch.finfo(torch.float32).eps)
        return merged * gain - weight


Layer = Additive | DoRA


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


def _kronecker(left: Tensor, right: Tensor) -> Tensor:
    """[a, b] ⊗ [c, d, …] -> [a·c, b·d, …]."""
    return torch.einsum("ab,cd...->acbd...", left, right).flatten(0, 1).flatten(1, 2)


def _low_rank(up: Tensor, down: Tensor, scale: float) -> LowRank:
    up = up.reshape(*up.shape, *([1, 1] if down.dim() == 4 else []))
    return LowRank(down.contiguous(), up.contiguous(), scale * down.shape[0])
