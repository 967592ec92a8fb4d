"""An adapter in the weights of a model in memory: it costs nothing in use, and the base comes back.

The base's own weights are kept and put back as they are. To subtract ΔW again would not do: ten
such rounds change a quarter of the values of even an fp32 base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn

from trainer.adapter.attach import Parts, Slot, slots
from trainer.adapter.factors import Adapter
from trainer.adapter.fuse import FuseReport, fuse


@dataclass
class FusedModel:
    """A model with an adapter in its weights; `report` says what rounding left of the adapter."""

    report: FuseReport
    _slots: Mapping[str, Slot]
    _kept: Mapping[str, nn.Parameter]

    def restore(self) -> None:
        """Puts the base's weights back, bit for bit. Doing it twice is doing it once."""
        for path, weight in self._kept.items():
            self._slots[path].layer.weight = weight

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.restore()


@torch.no_grad()
def fuse_model(parts: Parts, adapter: Adapter) -> FusedModel:
    """Puts an adapter into the weights of a model without attached adapters, in their own number
    format; until `restore`, the changed layers are in memory twice.

    Several adapters, or one at another strength, go through `compose.combine` first.

    Raises:
        AdapterError: if the adapter does not fit, a layer is quantised, or rounding would lose the
            adapter; the model is then as it was.
    """
    places = {path: slot for path, slot in slots(parts).items() if path in adapter}
    kept = {path: slot.layer.get_parameter("weight") for path, slot in places.items()}
    weights, report = fuse(kept, adapter)
    model = FusedModel(report, places, kept)
    for path, slot in places.items():
        slot.layer.weight = nn.Parameter(weights[path], requires_grad=False)
    return model
