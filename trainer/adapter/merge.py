"""Merging by more than a sum: TIES, DARE and magnitude pruning, on whole ΔW.

The methods choose entries of ΔW, so each layer is formed in full, merged, and reduced to a rank
again; the error of that reduction is stated. TIES: Yadav et al., 2023, arXiv:2306.01708. DARE: Yu
et al., 2023, arXiv:2311.03099. That either makes better images than the exact sum
(`compose.combine`) is not shown, so the sum is the default everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from trainer.adapter import algebra
from trainer.adapter.algebra import Cut, Error
from trainer.adapter.compose import Weight, at, differ_in_shape
from trainer.adapter.factors import Adapter, LowRank

Method = Literal["ties", "dare", "dare-ties", "magnitude"]


def merge(
    weighted: Sequence[tuple[Adapter, Weight]],
    method: Method,
    *,
    cut: Cut,
    density: float = 0.5,
    seed: int = 0,
) -> tuple[dict[str, LowRank], Error]:
    """One adapter from several by a method that drops entries, and what the cut to a rank loses.

    Args:
        density: share of each ΔW's entries that is kept, above 0 and at most 1.
        seed: of the random choice in DARE, which is made anew for every layer and adapter.

    Raises:
        AdapterError: if the adapters' layers differ in shape.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density must be above 0 and at most 1, not {density}")
    merged, lost, energies = {}, {}, {}
    for path in dict.fromkeys(path for adapter, _ in weighted for path in adapter):
        deltas, weights = [], []
        for index, (adapter, weight) in enumerate(weighted):
            factor = at(weight, path)
            if path in adapter and factor != 0:
                delta = adapter[path].delta()
                deltas.append(
                    delta * _mask(method, delta, density, mask_generator(seed, path, index))
                )
                weights.append(factor)
        if not deltas:
            continue
        if len({delta.shape for delta in deltas}) > 1:
            raise differ_in_shape(path)
        delta = _join(method, torch.stack(deltas), torch.tensor(weights), density)
        spectrum = algebra.dense_spectrum(delta)
        merged[path], lost[path] = algebra.truncated(spectrum, cut, tuple(delta.shape[2:]))
        energies[path] = spectrum.energy
    return merged, algebra.error(lost, energies)


def largest(delta: Tensor, density: float) -> Tensor:
    """A mask of the share `density` of entries that are largest in magnitude."""
    count = int(density * delta.numel())
    mask = torch.zeros(delta.numel(), dtype=torch.bool, device=delta.device)
    mask[delta.abs().flatten().topk(count).indices] = True
    return mask.reshape(delta.shape)


def chosen(shape: Sequence[int], density: float, generator: torch.Generator) -> Tensor:
    """A mask in which each entry is true with probability `density`, drawn on the CPU."""
    return torch.rand(tuple(shape), generator=generator) < density


def elect_and_average(deltas: Tensor, weights: Tensor) -> Tensor:
    """TIES after trimming: deltas [n, …], weights [n] -> […].

    The sign of the larger total wins each entry; the weighted mean is of those that agree with it.
    A negative weight turns its adapter round before the election.
    """
    column = _column(weights, deltas)
    deltas = deltas * column.sign()
    elected = torch.where(deltas.sum(dim=0) >= 0, 1.0, -1.0)
    agree = deltas.sign() == elected
    total = (deltas * column.abs() * agree).sum(dim=0)
    return total / agree.sum(dim=0).clamp(min=1)


def _mask(method: Method, delta: Tensor, density: float, generator: torch.Generator) -> Tensor:
    if method in ("dare", "dare-ties"):
        return chosen(delta.shape, density, generator)
    return largest(delta, density)


def _join(method: Method, kept: Tensor, weights: Tensor, density: float) -> Tensor:
    """Masked deltas [n, …] with weights [n] as one ΔW."""
    if method in ("dare", "dare-ties"):
        kept = kept / density  # what is left makes up for what was dropped
    if method in ("ties", "dare-ties"):
        return elect_and_average(kept, weights)
    return (kept * _column(weights, kept)).sum(dim=0)


def _column(weights: Tensor, deltas: Tensor) -> Tensor:
    return weights.reshape(-1, *[1] * (deltas.dim() - 1))


def mask_generator(seed: int, path: str, index: int) -> torch.Generator:
    """A generator of its own for every layer of every adapter, the same whatever the order."""
    digest = hashlib.sha256(f"{seed}:{index}:{path}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
