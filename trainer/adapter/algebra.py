"""The mathematics under composition: products of thin factors, and their best approximations.

Nothing here knows of files or models. Singular value decompositions of a product up @ down are
taken of the small core between the two factors' QR decompositions, in fp64, and never of the
product.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.adapter.factors import LowRank

# Singular values below this fraction of the largest are rounding noise of fp32 factors.
_NOISE = 1e-7


@dataclass(frozen=True)
class Error:
    """What an approximation loses: ‖Δ − Δ'‖ / ‖Δ‖ in the Frobenius norm, by layer and in all.

    The total weighs layers by their norm: it is the error of the adapter as one long vector.
    """

    layers: Mapping[str, float]
    total: float


@dataclass(frozen=True)
class Spectrum:
    """A thin singular value decomposition left · diag(values) · right, in fp64.

    left [out, k], values [k] falling, right [k, in·kh·kw].
    """

    left: Tensor
    values: Tensor
    right: Tensor

    @property
    def energy(self) -> float:
        """‖Δ‖², the sum of the squared singular values."""
        return float(self.values.square().sum())


@dataclass(frozen=True)
class Cut:
    """How far to reduce a rank: to `rank`, or to the smallest that keeps a share `energy` of ‖Δ‖².

    With both, the smaller rank of the two; with neither, all but rounding noise is kept.
    """

    rank: int | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank must be at least 1, not {self.rank}")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ValueError(f"energy must be above 0 and at most 1, not {self.energy}")

    def count(self, values: Tensor) -> int:
        """How many of the falling singular values [k] to keep: at least one."""
        kept = int((values > _NOISE * values[0]).sum())
        if self.rank is not None:
            kept = min(kept, self.rank)
        if self.energy is not None and self.energy < 1:
            share = values.square().cumsum(0)
            reached = int((share < self.energy * share[-1]).sum()) + 1
            kept = min(kept, reached)
        return max(kept, 1)


def product_spectrum(layer: LowRank) -> Spectrum:
    """The singular values of ΔW from its factors; k = min(rank, out, in·kh·kw)."""
    left, left_core = torch.linalg.qr(layer.up.double().flatten(1))
    right, right_core = torch.linalg.qr(layer.down.double().flatten(1).T)
    inner, values, outer = torch.linalg.svd(
        layer.scale * left_core @ right_core.T, full_matrices=False
    )
    return Spectrum(left @ inner, values, outer @ right.T)


def dense_spectrum(delta: Tensor) -> Spectrum:
    """The singular values of a full ΔW [out, in(, kh, kw)]; k = min(out, in·kh·kw).

    By the eigenvectors of its smaller Gram matrix in fp64, several times faster than the SVD of a
    wide matrix; values below 1e-8 of the largest are noise.
    """
    matrix = delta.double().flatten(1)
    if matrix.shape[0] > matrix.shape[1]:
        turned = dense_spectrum(matrix.T)
        return Spectrum(turned.right.T, turned.values, turned.left.T)
    squares, vectors = torch.linalg.eigh(matrix @ matrix.T)
    left = vectors.flip(1)
    values = squares.flip(0).clamp(min=0).sqrt()
    right = left.T @ matrix / values.clamp(min=torch.finfo(torch.float64).tiny)[:, None]
    return Spectrum(left, values, right)


def truncated(spectrum: Spectrum, cut: Cut, kernel: tuple[int, ...] = ()) -> tuple[LowRank, float]:
    """The best approximation of its rank (Eckart & Young, 1936), and the ‖Δ − Δ'‖² it leaves.

    Both factors get the square roots of the singular values, so that neither is lost to a narrow
    number format; alpha is the rank. Never clamped: that costs more than the truncation.
    """
    count = cut.count(spectrum.values)
    roots = spectrum.values[:count].sqrt()
    up = (spectrum.left[:, :count] * roots).float()
    down = (roots[:, None] * spectrum.right[:count]).float()
    if kernel:
        up = up[:, :, None, None]
        down = down.reshape(count, -1, *kernel)
    lost = float(spectrum.values[count:].square().sum())
    return LowRank(down.contiguous(), up.contiguous(), float(count)), lost


def inner(one: LowRank, other: LowRank) -> float:
    """⟨Δ₁, Δ₂⟩, the sum of the products of their entries, without forming either."""
    ups = one.up.double().flatten(1).T @ other.up.double().flatten(1)
    downs = one.down.double().flatten(1) @ other.down.double().flatten(1).T
    return one.scale * other.scale * float((ups * downs).sum())


def norm(layer: LowRank) -> float:
    """‖Δ‖ in the Frobenius norm, without forming Δ."""
    return math.sqrt(max(inner(layer, layer), 0.0))


def error(lost: Mapping[str, float], energies: Mapping[str, float]) -> Error:
    """The error from each layer's ‖Δ − Δ'‖² and ‖Δ‖²; a layer that was zero has none."""
    layers = {
        path: math.sqrt(lost[path] / energy) if energy > 0 else 0.0
        for path, energy in energies.items()
    }
    whole = sum(energies.values())
    return Error(layers, math.sqrt(sum(lost.values()) / whole) if whole > 0 else 0.0)
