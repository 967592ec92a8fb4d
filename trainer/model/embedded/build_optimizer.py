"""Muon: momentum whose direction is made orthogonal, for the matrices inside a net.

Each step of a weight is the nearest orthogonal matrix to its momentum (K. Jordan and others, "Muon:
an optimizer for hidden layers", 2024), scaled so that rates chosen for Adam fit (arXiv 2502.16982).
A convolution's weight [out, in, h, w] counts as a matrix [out, in·h·w]. `torch.optim.Muon` takes no
convolutions, and works in bfloat16, which a CPU without it does slowly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the odd polynomial that takes singular values in 0..1 to about 0.7..1.2."""


def orthogonal(matrix: Tensor, rounds: int = 5) -> Tensor:
    """A matrix [m, n] with the singular vectors of `matrix` and singular values near one."""
    a, b, c = NEWTON_SCHULZ
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    out = wide / (wide.norm() + 1e-7)
    for _ in range(rounds):
        gram = out @ out.T
        out = a * out + torch.addmm(b * gram, gram, gram, alpha=c) @ out
    result: Tensor = out.T if matrix.shape[0] > matrix.shape[1] else out
    return result


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal; decoupled weight decay."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Takes one step from the gradients, which are the same in every process.

        Each process makes its share of the steps orthogonal and sends the weights to the others.
        """
        assert closure is None
        processes = dist.get_world_size() if dist.is_initialized() else 1
        rank = dist.get_rank() if processes > 1 else 0
        for group in self.param_groups:
            for number, parameter in enumerate(group["params"]):
                if parameter.grad is None:
                    continue
                gradient = parameter.grad.reshape(len(parameter), -1)
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(gradient)
                momentum = state["momentum"].lerp_(gradient, 1 - group["momentum"])
                if number % processes == rank:
                    step = orthogonal(gradient.lerp(momentum, group["momentum"]))
                    rate = 0.2 * max(step.shape) ** 0.5 * group["lr"]
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(step.view_as(parameter), alpha=rate)
                if processes > 1:
                    dist.broadcast(parameter, number % processes)


def optimizers_for(
    module: nn.Module, rate: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside a module; AdamW for its first and last layers and its vectors.

    Parameters that need no gradient are in neither.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            outer = parameter.ndim < 2 or any(part in name for part in _OUTER)
            (others if outer else matrices).append(parameter)
    adam = torch.optim.AdamW(others, rate, (0.9, 0.99), weight_decay=weight_decay, fused=True)
    return [Muon(matrices, rate, weight_decay=weight_decay), adam] if matrices else [adam]


_OUTER = ("embedding.weight", "conv_in", "conv_out", "quant_conv", "heads")
