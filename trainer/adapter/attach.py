"""Putting adapters on a model and taking them off again.

`attach_new` is for training, `attach` for any number of finished adapters. Both check everything
before they touch the model, so a failure leaves it as it was; `Attachment.detach` gives the base
back bit for bit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from trainer.adapter.factors import Adapter, LowRank
from trainer.adapter.fit import fitted, mismatch
from trainer.adapter.layers import LoraLayer, initial_factors, wrap
from trainer.errors import AdapterError, UserError
from trainer.settings import Targets

# A strength is a number, one number per image [B], or a function from module path to either.
Strength = float | Tensor | Callable[[str], float | Tensor]

_ATTENTION = r"\.attn[12]\.(to_[qkv]|to_out\.0)$|\.self_attn\.([qkv]|out)_proj$"
_FEED_FORWARD = r"\.ff\.net\.(0\.proj|2)$|\.mlp\.fc[12]$"
_TRANSFORMER = r"^unet\..*\.attentions\.|\.encoder\.layers\."
_CONVOLUTION = r"^unet\..*\.(resnets|downsamplers|upsamplers)\."
_PATTERNS: dict[Targets, str] = {
    "attention": _ATTENTION,
    "attention-ff": f"{_ATTENTION}|{_FEED_FORWARD}",
    "linear": _TRANSFORMER,
    "linear-conv": f"{_TRANSFORMER}|{_CONVOLUTION}",
}


@dataclass(frozen=True)
class Slot:
    """A layer's place in a model: the module that holds it, its name there, and the layer."""

    parent: nn.Module
    name: str
    layer: nn.Module

    def put(self, layer: nn.Module) -> None:
        setattr(self.parent, self.name, layer)


Parts = Mapping[str, nn.Module]  # {"unet": …, "text_encoder": …}


def slots(parts: Parts) -> dict[str, Slot]:
    """Every linear layer and convolution of a model by its module path, in a fixed order."""
    found = {}
    for part, root in parts.items():
        for path, module in root.named_modules():
            parent_path, _, name = path.rpartition(".")
            if isinstance(module, nn.Linear | nn.Conv2d):
                slot = Slot(root.get_submodule(parent_path), name, module)
                found[module_path(part, path)] = slot
    return found


def module_path(part: str, path: str) -> str:
    """The path by which adapters know a layer. Newer versions of transformers have no `text_model`
    level in CLIPTextModel; adapter files always do."""
    if part.startswith("text_encoder") and not path.startswith(("text_model.", "text_projection")):
        path = f"text_model.{path}"
    return f"{part}.{path}"


def select(parts: Parts, targets: Targets) -> dict[str, Slot]:
    """The layers that `targets` means.

    Raises:
        UserError: if a part of the model has none of them.
    """
    pattern = re.compile(_PATTERNS[targets])
    chosen = {path: slot for path, slot in slots(parts).items() if pattern.search(path)}
    for part in parts:
        if not any(path.startswith(f"{part}.") for path in chosen):
            raise UserError(f"adapter.targets {targets!r} matches no layer of the {part}.")
    return chosen


@dataclass
class Attachment:
    """Adapters on a model. `names` are in the order of their rows; `layers` are by module path."""

    layers: dict[str, LoraLayer]
    names: tuple[str, ...]
    _slots: dict[str, Slot]
    _gates: dict[str, dict[str, Tensor]]  # module path -> adapter name -> alpha / rank per row [R]

    def set(self, strengths: Mapping[str, Strength]) -> None:
        """Sets the strength of each named adapter; those not named are off.

        Costs a few small tensors a layer. Raises KeyError for a name that is not attached.
        """
        unknown = set(strengths) - set(self.names)
        if unknown:
            raise KeyError(f"not attached: {', '.join(sorted(unknown))}")
        for path, layer in self.layers.items():
            layer.gate = _gate(
                {
                    name: (rows, _at(strengths.get(name, 0.0), path))
                    for name, rows in self._gates[path].items()
                }
            )

    def attach(self) -> None:
        """Puts the adapter layers in place, again after `detach`."""
        for path, slot in self._slots.items():
            slot.put(self.layers[path])

    def detach(self) -> None:
        """Puts the base layers back. Doing it twice is doing it once."""
        for slot in self._slots.values():
            slot.put(slot.layer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.detach()


def attach(parts: Parts, adapters: Mapping[str, Adapter]) -> Attachment:
    """Puts finished adapters on a model, each at strength 1.

    Raises:
        AdapterError: if an adapter has a layer that the model lacks or that differs in shape; the
            model is then as it was.
    """
    places = slots(parts)
    shapes = {path: tuple(_weight(slot).shape) for path, slot in places.items()}
    for name, adapter in adapters.items():
        if problem := mismatch(adapter, shapes):
            raise AdapterError(f"{name}: {problem}", "Use it with the base it was trained on.")
    adapters = {name: fitted(adapter, shapes) for name, adapter in adapters.items()}
    paths = [path for path in places if any(path in adapter for adapter in adapters.values())]
    layers: dict[str, LoraLayer] = {}
    gates: dict[str, dict[str, Tensor]] = {}
    for path in paths:
        factors = {name: adapter[path] for name, adapter in adapters.items() if path in adapter}
        weight = _weight(places[path])
        layers[path] = wrap(places[path].layer, *_concatenate(factors.values(), weight), None)
        gates[path] = {
            name: torch.full((factor.rank,), factor.scale, device=weight.device)
            for name, factor in factors.items()
        }
    return _put(places, layers, gates, tuple(adapters))


def attach_new(
    parts: Parts, targets: Targets, rank: int, alpha: float, generator: torch.Generator
) -> Attachment:
    """Puts a fresh, trainable adapter named `new` on the layers that `targets` means.

    The factors are drawn from `generator` (on the CPU) in a fixed order.
    """
    places = select(parts, targets)
    layers: dict[str, LoraLayer] = {}
    gates: dict[str, dict[str, Tensor]] = {}
    for path, slot in places.items():
        device = _weight(slot).device
        down, up = initial_factors(slot.layer, rank, generator)
        layer = wrap(slot.layer, down.to(device), up.to(device), None)
        layer.down.requires_grad_(True)
        layer.up.requires_grad_(True)
        layers[path] = layer
        gates[path] = {"new": torch.full((rank,), alpha / rank, device=device)}
    return _put(places, layers, gates, ("new",))


def read_back(attachment: Attachment, alpha: float) -> dict[str, LowRank]:
    """The trained adapter as data, on the CPU in fp32; the copy does not follow later steps."""
    return {
        path: LowRank(
            layer.down.detach().to("cpu", torch.float32, copy=True),
            layer.up.detach().to("cpu", torch.float32, copy=True),
            alpha,
        )
        for path, layer in attachment.layers.items()
    }


def _put(
    places: Mapping[str, Slot],
    layers: dict[str, LoraLayer],
    gates: dict[str, dict[str, Tensor]],
    names: tuple[str, ...],
) -> Attachment:
    attachment = Attachment(layers, names, {path: places[path] for path in layers}, gates)
    attachment.set(dict.fromkeys(names, 1.0))
    attachment.attach()
    return attachment


def _weight(slot: Slot) -> Tensor:
    weight = slot.layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _concatenate(factors: Iterable[LowRank], weight: Tensor) -> tuple[Tensor, Tensor]:
    factors = list(factors)
    down = torch.cat([factor.down.float() for factor in factors], dim=0)
    up = torch.cat([factor.up.float() for factor in factors], dim=1)
    # Frozen factors may as well be in the base's precision: no cast in every call.
    return down.to(weight.device, weight.dtype), up.to(weight.device, weight.dtype)


def _gate(rows: Mapping[str, tuple[Tensor, float | Tensor]]) -> Tensor | None:
    """[R], or [B, R] if any strength is per image; None if all are off."""
    if all(isinstance(strength, float | int) and strength == 0 for _, strength in rows.values()):
        return None
    columns = []
    for scale, strength in rows.values():
        if isinstance(strength, Tensor):
            columns.append(strength.to(scale.device, scale.dtype)[:, None] * scale)
        else:
            columns.append(scale * strength)
    images = max((column.shape[0] for column in columns if column.dim() == 2), default=None)
    if images is not None:
        columns = [column.expand(images, -1) for column in columns]
    return torch.cat(columns, dim=-1)


def _at(strength: Strength, path: str) -> float | Tensor:
    return strength(path) if callable(strength) else strength
