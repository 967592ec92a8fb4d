"""An adapter's factors while they are trained: their average, their size, how they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainer.adapter.blocks import block_of
from trainer.adapter.layers import AdapterLayer
from trainer.model.quantise import dense_weight

Layers = Mapping[str, AdapterLayer]


def named(layers: Layers) -> dict[str, nn.Parameter]:
    """Every factor by path and role, `path/down`, in a fixed order."""
    return {
        f"{path}/{role}": factor
        for path, layer in layers.items()
        for role, factor in layer.factors.items()
    }


class Average:
    """The exponential moving average of factors, with a short memory at first:
    after step k the decay is min(decay, (1 + k) / (10 + k))."""

    def __init__(self, factors: Mapping[str, nn.Parameter], decay: float) -> None:
        self._decay = decay
        self.tensors = {name: factor.detach().clone() for name, factor in factors.items()}

    @torch.no_grad()
    def update(self, factors: Mapping[str, nn.Parameter], step: int) -> None:
        """Takes in the factors after step `step`, counted from 0."""
        keep = min(self._decay, (1 + step) / (10 + step))
        now = [factors[name].detach() for name in self.tensors]
        torch._foreach_lerp_(list(self.tensors.values()), now, 1 - keep)  # one kernel for many


@contextmanager
def as_used(
    factors: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    average: Average | None,
) -> Iterator[None]:
    """Within the block the factors are what the adapter will be used with: their average, or what
    a schedule-free optimizer evaluates at. Afterwards they are what they were, bit for bit."""
    has_modes = "train_mode" in optimizer.param_groups[0]
    if average is None and not has_modes:
        yield
        return
    kept = {name: factor.detach().clone() for name, factor in factors.items()}
    # Such an optimizer goes between its two points by arithmetic that rounds, so it is not asked
    # to go back: the copy is put back, and its mode with it.
    modes = [group.get("train_mode") for group in optimizer.param_groups]
    if has_modes:
        optimizer.eval()  # type: ignore[attr-defined]
    try:
        if average is not None:
            put(factors, average.tensors)
        yield
    finally:
        put(factors, kept)
        for group, mode in zip(optimizer.param_groups, modes, strict=True):
            if mode is not None:
                group["train_mode"] = mode


@torch.no_grad()
def put(factors: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    """Copies `tensors` into the factors of the same names."""
    for name, factor in factors.items():
        factor.copy_(tensors[name])


def limit_norms(layers: Layers, largest: float) -> None:
    """Shrinks the factors of each layer whose change is larger than `largest`, to that norm."""
    for layer in layers.values():
        layer.limit(largest)


def change_by_block(layers: Layers) -> dict[str, float]:
    """‖ΔW‖ / ‖W‖ of each block, the norms taken over all its adapted layers together."""
    squares: dict[str, tuple[float, float]] = {}
    for path, layer in layers.items():
        change, whole = squares.get(block_of(path), (0.0, 0.0))
        change += float(layer.change()) ** 2
        weight = dense_weight(layer.base)
        whole += float(torch.linalg.vector_norm(weight, dtype=torch.float32)) ** 2
        squares[block_of(path)] = (change, whole)
    return {block: (change / whole) ** 0.5 for block, (change, whole) in squares.items()}


def gradients_by_block(layers: Layers) -> dict[str, float]:
    """The norm of the factors' gradients in each block."""
    squares: dict[str, float] = {}
    for path, layer in layers.items():
        for factor in layer.factors.values():
            if factor.grad is not None:
                block = block_of(path)
                squares[block] = squares.get(block, 0.0) + float(factor.grad.square().sum())
    return {block: total**0.5 for block, total in squares.items()}
