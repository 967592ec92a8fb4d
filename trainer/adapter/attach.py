"""Putting adapters on a model and taking them off again.

`attach_new` is for training, `attach` for any number of finished adapters. Both check everything
before they touch the model, so a failure leaves it as it was; `Attachment.detach` gives the base
back bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from trainer import settings
from trainer.adapter.dropout import Dropout
from trainer.adapter.factors import Adapter, LowRank
from trainer.adapter.fit import fitted, mismatch
from trainer.adapter.gates import Gates, Strength
from trainer.adapter.kinds import Layer
from trainer.adapter.layers import AdapterLayer, initial, shape_of, wrap
from trainer.adapter.plan import LayerPlan, plan, targeted
from trainer.errors import AdapterError
from trainer.model.quantise import is_packed
from trainer.settings import Targets


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
    places = slots(parts)
    return {path: places[path] for path in targeted(places, targets)}


@dataclass
class Attachment:
    """Adapters on a model. `names` are in the order of their rows; `layers` are by module path.

    `dropout` and `plans` are of one that is trained.
    """

    layers: dict[str, AdapterLayer]
    names: tuple[str, ...]
    _slots: dict[str, Slot]
    _gates: Gates
    dropout: Dropout
    plans: Mapping[str, LayerPlan]

    def set(self, strengths: Mapping[str, Strength]) -> None:
        """Sets the strength of each named adapter; those not named are off.

        Raises KeyError for a name that is not attached.
        """
        unknown = set(strengths) - set(self.names)
        if unknown:
            raise KeyError(f"not attached: {', '.join(sorted(unknown))}")
        found, gates_on = self._gates.at(strengths)
        gates: dict[torch.device, dict[str, Tensor]] = {}
        for path, layer in self.layers.items():
            device = next(iter(layer.factors.values())).device  # not all parts are on the same
            if device not in gates:
                gates[device] = gates_on(device)
            layer.use(found[path], gates[device][path])

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

    def __exit__(self, *_raised: object) -> None:
        self.detach()


def attach(parts: Parts, adapters: Mapping[str, Adapter]) -> Attachment:
    """Puts finished adapters on a model, each at strength 1.

    Raises:
        AdapterError: if an adapter has a layer that the model lacks or that differs in shape; the
            model is then as it was.
    """
    places = slots(parts)
    shapes = _shapes(places)
    for name, adapter in adapters.items():
        if problem := mismatch(adapter, shapes):
            raise AdapterError(f"{name}: {problem}", "Use it with the base it was trained on.")
    adapters = {name: fitted(adapter, shapes) for name, adapter in adapters.items()}
    paths = [path for path in places if any(path in adapter for adapter in adapters.values())]
    layers: dict[str, AdapterLayer] = {}
    scales: dict[str, dict[str, list[float]]] = {}
    for path in paths:
        factors = {name: adapter[path] for name, adapter in adapters.items() if path in adapter}
        weight = _weight(places[path])
        layer = wrap(places[path].layer, *_concatenate(factors.values(), weight), None)
        if len(factors) == 1:
            (layer.alpha,) = (factor.alpha for factor in factors.values())
        layers[path] = layer
        scales[path] = {name: [factor.scale] * factor.rank for name, factor in factors.items()}
    return _put(places, layers, scales, tuple(adapters), Dropout(0, 0, 0), {})


def planned(parts: Parts, wanted: settings.Adapter) -> dict[str, LayerPlan]:
    """The adapter that the settings mean on these parts. Raises UserError as `attach_new` does."""
    return plan(_shapes(slots(parts)), wanted)


def attach_new(parts: Parts, wanted: settings.Adapter, generator: torch.Generator) -> Attachment:
    """Puts a fresh, trainable adapter named `new` on the layers that the settings mean.

    The factors are drawn from `generator` (on the CPU) in a fixed order.

    Raises:
        UserError: if targets, a pattern or a block matches no layer; the model is as it was.
    """
    places = slots(parts)
    plans = plan(_shapes(places), wanted)
    layers: dict[str, AdapterLayer] = {}
    scales: dict[str, dict[str, list[float]]] = {}
    dropout = Dropout(wanted.dropout, wanted.rank_dropout, wanted.module_dropout)
    for number, (path, layer_plan) in enumerate(plans.items()):
        base = places[path].layer
        device = _weight(places[path]).device
        tensors = {
            role: initial(factor, base, generator).to(device)
            for role, factor in layer_plan.factors.items()
        }
        layer = layer_plan.kind.trainable(base, tensors, layer_plan.alpha)
        layer.dropout, layer.number = dropout, number
        layer.fast = frozenset(role for role, factor in layer_plan.factors.items() if factor.fast)
        for trained in layer.factors.values():
            trained.requires_grad_(True)
        layers[path] = layer
        scales[path] = {"new": [layer_plan.alpha / layer_plan.rank] * layer_plan.rank}
    return _put(places, layers, scales, ("new",), dropout, plans)


def read_back(attachment: Attachment) -> dict[str, Layer]:
    """The trained adapter as data, on the CPU in fp32; the copy does not follow later steps."""
    return {path: _copied(layer.data()) for path, layer in attachment.layers.items()}


def _copied(value: Any) -> Any:
    """A layer as data with tensors of its own."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", torch.float32, copy=True)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _copied(getattr(value, f.name)) for f in fields(value)})
    return value


def _put(
    places: Mapping[str, Slot],
    layers: dict[str, AdapterLayer],
    scales: Mapping[str, Mapping[str, Sequence[float]]],
    names: tuple[str, ...],
    dropout: Dropout,
    plans: Mapping[str, LayerPlan],
) -> Attachment:
    used = {path: places[path] for path in layers}
    attachment = Attachment(layers, names, used, Gates(scales), dropout, plans)
    attachment.set(dict.fromkeys(names, 1.0))
    attachment.attach()
    return attachment


def _shapes(places: Mapping[str, Slot]) -> dict[str, tuple[int, ...]]:
    return {path: shape_of(slot.layer) for path, slot in places.items()}


def _weight(slot: Slot) -> Tensor:
    weight = slot.layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _concatenate(factors: Iterable[LowRank], weight: Tensor) -> tuple[Tensor, Tensor]:
    factors = list(factors)
    down = torch.cat([factor.down.float() for factor in factors], dim=0)
    up = torch.cat([factor.up.float() for factor in factors], dim=1)
    # Frozen factors may as well be in the base's precision: no cast in every call.
    dtype = down.dtype if is_packed(weight) else weight.dtype
    return down.to(weight.device, dtype), up.to(weight.device, dtype)
