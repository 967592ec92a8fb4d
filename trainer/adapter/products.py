"""A frozen linear layer and the low-rank update beside it as one operation.

Nothing is held for the backward pass but x and the small hidden activations; the sums of both paths
are formed in place, forward and backward.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def linear_with_update(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, gate: Tensor
) -> Tensor:
    """`weight @ x + bias + up(gate * down(x))`, [B, …, out].

    Args:
        x: [B, …, in].
        weight, bias: [out, in] and [out], frozen, in the precision of x.
        down, up: [R, in] and [out, R], in any precision; used in that of x.
        gate: [R], or [B, R]; it has no gradient.
    """
    return _LinearWithUpdate.apply(x, weight, bias, down, up, gate)  # type: ignore[no-any-return, no-untyped-call]


class _LinearWithUpdate(torch.autograd.Function):
    # Hidden activations are kept as [R, N]: products of a few rows with all of x are several times
    # as fast on a CPU as products of all of x with a few columns, and the same on a GPU.
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        gate: Tensor,
    ) -> Tensor:
        down, up = down.to(x.dtype), up.to(x.dtype)
        rows = x.reshape(-1, x.shape[-1])
        hidden = _gated(down @ rows.T, gate)
        y = F.linear(rows, weight, bias).addmm_(hidden.T, up.T)
        ctx.save_for_backward(x, hidden, weight, down, up, gate)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, weight, down, up, gate = ctx.saved_tensors
        wants_x, _, _, wants_down, wants_up, _ = ctx.needs_input_grad
        rows = dy.reshape(-1, dy.shape[-1])
        dx = d_down = d_up = None
        if wants_up:
            d_up = (hidden @ rows).float().T
        if wants_x or wants_down:
            d_hidden = _gated(up.T @ rows.T, gate)
            if wants_down:
                d_down = (d_hidden @ x.reshape(-1, x.shape[-1])).float()
            if wants_x:
                dx = (rows @ weight).addmm_(d_hidden.T, down).view(x.shape)
        return dx, None, None, d_down, d_up, None


def _gated(hidden: Tensor, gate: Tensor) -> Tensor:
    """[R, N] times a gate [R], or [B, R] for the N / B columns of each image."""
    if gate.dim() == 1:
        return hidden * gate[:, None]
    images = hidden.view(hidden.shape[0], gate.shape[0], -1)
    return (images * gate.T[:, :, None]).view(hidden.shape)
