"""The kinds of adapter. A new one is a file here with its `Kind`, and a line in `KINDS`.

No torch when this is imported.
"""

from __future__ import annotations

from trainer.adapter.factors import LowRank
from trainer.adapter.kinds.dora import DoRA, DoraKind
from trainer.adapter.kinds.full import Full, FullKind
from trainer.adapter.kinds.kind import Factor, Kind, Parts, Shape, words
from trainer.adapter.kinds.loha import LoHa, LohaKind
from trainer.adapter.kinds.lokr import LoKr, LokrKind
from trainer.adapter.kinds.lora import LoraKind

__all__ = ["KINDS", "Additive", "DoRA", "Factor", "Full", "Kind", "Layer", "LoHa", "LoKr",
           "LowRank", "Parts", "Shape", "direction", "kind_of", "reader"]  # fmt: skip

Additive = LowRank | LoHa | LoKr | Full
Layer = Additive | DoRA

_KINDS: tuple[tuple[type, Kind], ...] = (
    (LowRank, LoraKind()),
    (DoRA, DoraKind()),
    (LoHa, LohaKind()),
    (LoKr, LokrKind()),
    (Full, FullKind()),
)
KINDS: dict[str, Kind] = {kind.name: kind for _, kind in _KINDS}
_BY_ROLE = {role: kind for kind in KINDS.values() for role in kind.dimensions}


def kind_of(layer: Layer) -> Kind:
    """The kind of a layer that is held as data."""
    return next(kind for type_, kind in _KINDS if isinstance(layer, type_))


def reader(parts: Parts) -> Kind:
    """The kind that reads the tensors of one layer, by their roles.

    Raises:
        ValueError: if they are of no kind, of two, or have dimensions that make no sense.
    """
    for role, tensor in parts.items():
        if tensor.dim() not in _BY_ROLE[role].dimensions[role] or 0 in tensor.shape:
            raise ValueError(f"has a {role} of {words(tensor)}, which makes no sense")
    dora = KINDS["dora"]
    return dora if any(_BY_ROLE[role] is dora for role in parts) else direction(parts)


def direction(parts: Parts) -> Kind:
    """The kind of what is added, apart from magnitudes.

    Raises:
        ValueError: if there is none, or two.
    """
    found = {_BY_ROLE[role].name for role in parts} - {"dora"}
    if len(found) > 1:
        raise ValueError(f"mixes two kinds of adapter, {' and '.join(sorted(found))}")
    if not found:
        raise ValueError("is of no kind that is known")
    return KINDS[found.pop()]
