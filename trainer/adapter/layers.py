"""The one formula: `y = base(x) + up(gate * down(x))`.

`down` [R, in] and `up` [out, R] hold the rows of every attached adapter, so R is the sum of their
ranks, and `gate` [R] holds strength * alpha / rank for each row, or [B, R] for a strength of its
own for every image of the batch. Training is one adapter whose gate is alpha / rank.

The base layer is wrapped, not changed: taking the wrapper away gives the base back bit for bit.
LoRA: Hu et al., 2021, arXiv:2106.09685.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LoraLayer(nn.Module):
    """A base layer with low-rank adapters beside it.

    While they are trained, `down` and `up` are fp32, whatever the precision of the base; they are
    cast to the activations' dtype in use, never the activations to theirs. A `gate` of None
    switches the adapters off.
    """

    def __init__(self, base: nn.Module, down: Tensor, up: Tensor, gate: Tensor | None) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(down, requires_grad=False)
        self.up = nn.Parameter(up, requires_grad=False)
        self.gate: Tensor | None
        self.register_buffer("gate", gate, persistent=False)

    # Some of the models' code looks at the layer's weight, for its dtype or device.
    @property
    def weight(self) -> Tensor:
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias  # type: ignore[return-value]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = self.base(x, *args, **kwargs)
        if self.gate is None:
            return y
        return y + self.update(x, self.gate.to(x.dtype))

    def update(self, x: Tensor, gate: Tensor) -> Tensor:
        """`up(gate * down(x))`, of the shape of the base layer's output."""
        raise NotImplementedError


class LoraLinear(LoraLayer):
    """A linear layer; x is [B, …, in], down [R, in], up [out, R]."""

    def update(self, x: Tensor, gate: Tensor) -> Tensor:
        hidden = F.linear(x, self.down.to(x.dtype))  # [B, …, R]
        if gate.dim() == 2:
            gate = gate.view(gate.shape[0], *[1] * (x.dim() - 2), gate.shape[1])
        return F.linear(hidden * gate, self.up.to(x.dtype))


class LoraConv2d(LoraLayer):
    """A convolution; x is [B, in, H, W], down [R, in, kh, kw], up [out, R, 1, 1]."""

    base: nn.Conv2d

    def update(self, x: Tensor, gate: Tensor) -> Tensor:
        hidden = F.conv2d(  # [B, R, H', W']
            x,
            self.down.to(x.dtype),
            stride=self.base.stride,
            padding=self.base.padding,
            dilation=self.base.dilation,
        )
        gate = gate.view(-1, gate.shape[-1], 1, 1)
        return F.conv2d(hidden * gate, self.up.to(x.dtype))


def wrap(base: nn.Module, down: Tensor, up: Tensor, gate: Tensor | None) -> LoraLayer:
    """The adapter layer for a linear layer or a convolution."""
    kind = LoraConv2d if isinstance(base, nn.Conv2d) else LoraLinear
    return kind(base, down, up, gate)


def factor_shapes(base: nn.Module, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of `down` and `up` for a layer at a rank."""
    if isinstance(base, nn.Conv2d):
        return (rank, base.in_channels, *base.kernel_size), (base.out_channels, rank, 1, 1)
    assert isinstance(base, nn.Linear)
    return (rank, base.in_features), (base.out_features, rank)


def initial_factors(
    base: nn.Module, rank: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Fresh fp32 factors: down uniform in ±1/√fan_in (Kaiming with a = √5), up zero, so that a new
    adapter changes nothing."""
    down_shape, up_shape = factor_shapes(base, rank)
    bound = torch.Size(down_shape[1:]).numel() ** -0.5
    down = torch.empty(down_shape).uniform_(-bound, bound, generator=generator)
    return down, torch.zeros(up_shape)
