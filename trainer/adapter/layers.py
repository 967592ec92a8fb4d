"""The one formula: `y = base(x) + up(gate * down(x))`; and layers that train the other kinds.

`down` [R, in] and `up` [out, R] hold the rows of every attached adapter, so R is the sum of their
ranks, and `gate` [R] holds strength * alpha / rank for each row, or [B, R] for a strength of its
own for every image of the batch. Training is one adapter whose gate is alpha / rank.

The base layer is wrapped, not changed: taking the wrapper away gives the base back bit for bit.
Trained factors are fp32, whatever the precision of the base; they are cast to the activations'
dtype in use, never the activations to theirs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.adapter.dropout import Dropout
from trainer.adapter.kinds import DoRA, Factor, Kind, Layer, LowRank
from trainer.adapter.kinds.dora import channel_norms
from trainer.adapter.products import linear_with_update
from trainer.model.quantise import dense_weight

# The strength of each adapter that a layer has: a number, or one for each image [B].
Strengths = Sequence[float | Tensor]


class AdapterLayer(nn.Module):
    """A base layer with adapters beside it. A `gate` of None switches them off.

    `alpha` is of the one adapter in training; `dropout` knows the layer by its `number`; `fast` are
    the roles of the factors that LoRA+ speeds up.
    """

    base: nn.Module
    alpha: float = 1.0
    dropout: Dropout | None = None
    number: int = 0
    fast: frozenset[str] = frozenset()
    gate: Any

    # Some of the models' code looks at the layer's weight, for its dtype or device.
    @property
    def weight(self) -> Tensor:
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias  # type: ignore[return-value]

    @property
    @abstractmethod
    def factors(self) -> dict[str, nn.Parameter]:
        """The tensors that are trained, by role."""

    @abstractmethod
    def data(self) -> Layer:
        """What is trained, as data at strength 1; it shares its memory with the factors."""

    @abstractmethod
    def use(self, strengths: Strengths, gate: Tensor) -> None:
        """Sets the strengths of the attached adapters; `gate` [R] or [B, R] is strength times alpha
        / rank for each of their rows."""

    @abstractmethod
    def adapted(self, x: Tensor) -> Tensor:
        """The output with the adapters; `gate` is not None."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.gate is None or (self.dropout and self.dropout.skips(self.number)):
            return self.base(x, *args, **kwargs)  # type: ignore[no-any-return]
        return self.adapted(x)

    @torch.no_grad()
    def change(self) -> Tensor:
        """‖W' − W‖ in the Frobenius norm, at strength 1."""
        layer = self.data()
        assert not isinstance(layer, DoRA)
        norm: Tensor = torch.linalg.vector_norm(layer.delta())
        return norm

    @torch.no_grad()
    def limit(self, largest: float) -> None:
        """Shrinks all factors of the product alike, so that the norm is `largest` at most."""
        ratio = (largest / self.change().clamp(min=1e-12)).clamp(max=1)
        factors = self.factors.values()
        for factor in factors:
            factor.mul_(ratio ** (1 / len(factors)))


class LoraLayer(AdapterLayer):
    """Low-rank adapters: the one formula."""

    def __init__(self, base: nn.Module, down: Tensor, up: Tensor, gate: Tensor | None) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(down, requires_grad=False)
        self.up = nn.Parameter(up, requires_grad=False)
        self.gate: Tensor | None
        self.register_buffer("gate", gate, persistent=False)

    @property
    def factors(self) -> dict[str, nn.Parameter]:
        return {"down": self.down, "up": self.up}

    def data(self) -> LowRank:
        return LowRank(self.down, self.up, self.alpha)

    def use(self, strengths: Strengths, gate: Tensor) -> None:
        off = all(isinstance(one, float | int) and one == 0 for one in strengths)
        self.gate = None if off else gate

    def adapted(self, x: Tensor) -> Tensor:
        assert self.gate is not None
        gate = self.gate.to(x.dtype)
        if self.dropout:
            gate = self.dropout.gate(self.number, x, gate)
        return self.with_update(x, gate)

    def with_update(self, x: Tensor, gate: Tensor) -> Tensor:
        """`base(x) + up(gate * down(x))`."""
        raise NotImplementedError

    @torch.no_grad()
    def change(self) -> Tensor:
        # √tr((upᵀup)(down downᵀ)), without forming the product
        down, up = self.down.flatten(1), self.up.flatten(1)
        product = (up.T @ up) * (down @ down.T)
        return self.alpha / down.shape[0] * product.sum().clamp(min=0).sqrt()


class LoraLinear(LoraLayer):
    """A linear layer; x is [B, …, in], down [R, in], up [out, R]."""

    def with_update(self, x: Tensor, gate: Tensor) -> Tensor:
        drops = self.dropout is not None and self.dropout.entries > 0
        frozen = type(self.base) is nn.Linear and not self.weight.requires_grad
        if frozen and not drops and self.weight.dtype is x.dtype:
            return linear_with_update(x, self.weight, self.bias, self.down, self.up, gate)
        hidden = F.linear(x, self.down.to(x.dtype))
        if self.dropout:
            hidden = self.dropout.hidden(self.number, hidden)
        if gate.dim() == 2:
            gate = gate.view(gate.shape[0], *[1] * (x.dim() - 2), gate.shape[1])
        return self.base(x) + F.linear(hidden * gate, self.up.to(x.dtype))  # type: ignore[no-any-return]


class LoraConv2d(LoraLayer):
    """A convolution; x is [B, in, H, W], down [R, in, kh, kw], up [out, R, 1, 1]."""

    base: nn.Conv2d

    def with_update(self, x: Tensor, gate: Tensor) -> Tensor:
        hidden = _convolved(self.base, x, self.down)  # [B, R, H', W']
        if self.dropout:
            hidden = self.dropout.hidden(self.number, hidden)
        update = F.conv2d(hidden * gate.view(-1, gate.shape[-1], 1, 1), self.up.to(x.dtype))
        y: Tensor = self.base(x)
        # Only a plain layer's output is known to be nobody else's memory.
        return y.add_(update) if type(self.base) is nn.Conv2d else y + update


class DeltaLayer(AdapterLayer):
    """Trains a kind by forming its ΔW in each pass. `gate` is the strength, or one an image."""

    def __init__(
        self, kind: Kind, base: nn.Module, tensors: Mapping[str, Tensor], alpha: float
    ) -> None:
        super().__init__()
        self.kind, self.base, self.alpha = kind, base, alpha
        self.tensors = nn.ParameterDict(dict(tensors))
        self.gate: float | Tensor | None = 1.0

    @property
    def factors(self) -> dict[str, nn.Parameter]:
        return dict(self.tensors.items())

    def data(self) -> Layer:
        kernel = self.base.kernel_size[0] if isinstance(self.base, nn.Conv2d) else 1
        return self.kind.read(self.factors, kernel, self.alpha)

    def use(self, strengths: Strengths, gate: Tensor) -> None:
        self.gate = _only(strengths, gate)

    def adapted(self, x: Tensor) -> Tensor:
        layer = self.data()
        assert not isinstance(layer, DoRA)
        delta = layer.delta().reshape(shape_of(self.base))
        if self.dropout:
            delta = self.dropout.weight(self.number, delta)
        if isinstance(self.base, nn.Conv2d):
            update = _convolved(self.base, x, delta)
        else:
            update = F.linear(x, delta.to(x.dtype))
        return self.base(x) + _times(self.gate, update)  # type: ignore[no-any-return]


class DoraLayer(AdapterLayer):
    """Trains a direction and a magnitude for each input channel.

    W' = (W + ΔW) · g with g [in] = magnitude / ‖W + ΔW‖, so W'x = (W + ΔW)(g · x): the one formula
    on scaled inputs. The norm counts as a constant in the backward pass (section 4.3 of the paper).
    """

    def __init__(self, direction: LoraLayer, magnitude: Tensor) -> None:
        super().__init__()
        self.direction, self.base, self.alpha = direction, direction.base, direction.alpha
        self.dora_scale = nn.Parameter(magnitude, requires_grad=False)
        self.gate: float | Tensor | None = 1.0
        rank = direction.down.shape[0]
        direction.gate = torch.full((rank,), self.alpha / rank, device=magnitude.device)

    @property
    def factors(self) -> dict[str, nn.Parameter]:
        return {**self.direction.factors, "dora_scale": self.dora_scale}

    def data(self) -> DoRA:
        return DoRA(self.direction.data(), self.dora_scale)

    def use(self, strengths: Strengths, gate: Tensor) -> None:
        self.gate = _only(strengths, gate)

    def adapted(self, x: Tensor) -> Tensor:
        self.direction.dropout, self.direction.number = self.dropout, self.number
        gain = self.data().gain(self._merged()).to(x.dtype)
        scaled = x * (gain if isinstance(self.base, nn.Conv2d) else gain.flatten())
        y = self.direction.adapted(scaled)
        if isinstance(self.gate, float) and self.gate == 1:
            return y
        base = self.base(x)
        return base + _times(self.gate, y - base)  # type: ignore[no-any-return]

    @torch.no_grad()
    def change(self) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(self.data().delta(dense_weight(self.base)))
        return norm

    def limit(self, largest: float) -> None:
        """Limits the direction's ΔW; magnitudes are free."""
        self.direction.limit(largest)

    @torch.no_grad()
    def _merged(self) -> Tensor:
        return dense_weight(self.base).float() + self.direction.data().delta()


def wrap(base: nn.Module, down: Tensor, up: Tensor, gate: Tensor | None) -> LoraLayer:
    """The adapter layer for a linear layer or a convolution."""
    kind = LoraConv2d if isinstance(base, nn.Conv2d) else LoraLinear
    return kind(base, down, up, gate)


def shape_of(base: nn.Module) -> tuple[int, ...]:
    """The shape [out, in(, kh, kw)] of a layer's weight, also where it is stored in another."""
    if isinstance(base, nn.Conv2d):
        return (base.out_channels, base.in_channels // base.groups, *base.kernel_size)
    assert isinstance(base, nn.Linear)
    return (base.out_features, base.in_features)


def initial(factor: Factor, base: nn.Module, generator: torch.Generator) -> Tensor:
    """A fresh fp32 factor on the CPU. Only what is random is drawn from the generator."""
    match factor.start:
        case "zero":
            return torch.zeros(factor.shape)
        case "normal":
            return torch.empty(factor.shape).normal_(0, factor.size, generator=generator)
        case "uniform":
            return torch.empty(factor.shape).uniform_(
                -factor.size, factor.size, generator=generator
            )
        case "norms":
            return channel_norms(dense_weight(base).detach().float().cpu(), 1)


def _convolved(base: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    """x under another weight, as the base convolves it."""
    return F.conv2d(x, weight.to(x.dtype), None, base.stride, base.padding, base.dilation)


def _times(strength: float | Tensor | None, update: Tensor) -> Tensor:
    """An update [B, …] times a strength, or times one for each image [B]."""
    if isinstance(strength, Tensor):
        return update * strength.to(update.dtype).view(-1, *[1] * (update.dim() - 1))
    return update if strength == 1 else update * strength  # type: ignore[operator]


def _only(strengths: Strengths, gate: Tensor) -> float | Tensor | None:
    """The strength of the only adapter, None for 0."""
    (strength,) = strengths
    if isinstance(strength, Tensor):
        return strength.to(gate.device)
    return float(strength) or None
