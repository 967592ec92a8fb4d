"""A new run that goes on from an adapter file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from trainer.adapter.adapter import load
from trainer.adapter.attach import Attachment
from trainer.adapter.fit import fitted
from trainer.adapter.kinds import KINDS, Layer, LowRank, kind_of
from trainer.adapter.layers import shape_of
from trainer.errors import AdapterError
from trainer.model.stable_diffusion import BaseModel
from trainer.preview.session import load_for


@torch.no_grad()
def start(attachment: Attachment, kind: str, model: BaseModel, file: Path) -> None:
    """Gives a new adapter of a kind the factors of a file; scales are folded in.

    A LoRA can start from a file of any kind that is a LoRA of its rank; the others need their own.

    Raises:
        AdapterError: if the file is of another kind, rank or base, or has other layers.
    """
    layers = attachment.layers
    given: Mapping[str, Layer]
    if kind == "lora":
        shapes = {path: shape_of(layer.base) for path, layer in layers.items()}
        plain = load_for(model.family, model.place, file)
        given = fitted({p: factor for p, factor in plain.items() if p in layers}, shapes)
        given = {**plain, **given}
    else:
        given = load(file).layers
    differing = layers.keys() ^ given.keys()
    tensors: dict[str, dict[str, Tensor]] = {}
    for path in layers.keys() & given.keys():
        layer, found = layers[path], given[path]
        if kind_of(found) is not KINDS[kind]:
            raise AdapterError(
                f"{file} is not a {kind} adapter: it has another kind at {path}.",
                "Set adapter.kind to the file's, or convert it by `atelier convert` for lora.",
            )
        tensors[path] = kind_of(found).write(found, layer.alpha)
        wanted = {role: factor.numel() for role, factor in layer.factors.items()}
        if {role: tensor.numel() for role, tensor in tensors[path].items()} != wanted:
            differing.add(path)
    if differing:
        raise AdapterError(
            f"{file} is not an adapter of the rank and on the layers that the settings mean: it "
            f"differs at {sorted(differing)[0]}{_rank(given, layers)}.",
            "Give its rank and targets, or resize it first by `atelier resize`.",
        )
    for path, layer in layers.items():
        for role, factor in layer.factors.items():
            factor.copy_(tensors[path][role].reshape(factor.shape))


def _rank(given: Mapping[str, Layer], layers: object) -> str:
    """The file's rank in words, where it is a plain LoRA."""
    ranks = {layer.rank for layer in given.values() if isinstance(layer, LowRank)}
    return f" (its rank is {ranks.pop()})" if len(ranks) == 1 else ""
