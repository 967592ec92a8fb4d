"""Several adapters into one, one into a smaller one, and a fine-tuned model into an adapter.

Weights go on `up` alone, after the scale: to weigh both factors would square the weight, and to add
factors apart would give cross terms that no adapter meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from trainer.adapter import algebra
from trainer.adapter.algebra import Cut, Error
from trainer.adapter.factors import Adapter, LowRank
from trainer.errors import AdapterError

# A weight is a number of either sign, or a function from module path to one (see `blocks`).
Weight = float | Callable[[str], float]


def combine(weighted: Sequence[tuple[Adapter, Weight]]) -> dict[str, LowRank]:
    """The adapter whose ΔW is Σ wᵢ ΔWᵢ, exactly, by concatenation; its ranks are the sums.

    Layers whose weights are all 0 are left out.

    Raises:
        AdapterError: if the adapters' layers differ in shape, as those for different bases do.
    """
    combined = {}
    for path in _paths(adapter for adapter, _ in weighted):
        terms = [
            (adapter[path], factor)
            for adapter, weight in weighted
            if path in adapter and (factor := at(weight, path)) != 0
        ]
        if terms:
            combined[path] = _concatenated(path, terms)
    return combined


def compress(adapter: Adapter, cut: Cut) -> tuple[dict[str, LowRank], Error]:
    """The closest adapter of lower rank, layer by layer, and what it loses.

    By QR of both factors and an SVD of the small core between them.
    """
    smaller, lost, energies = {}, {}, {}
    for path, layer in adapter.items():
        spectrum = algebra.product_spectrum(layer)
        smaller[path], lost[path] = algebra.truncated(spectrum, cut, tuple(layer.down.shape[2:]))
        energies[path] = spectrum.energy
    return smaller, algebra.error(lost, energies)


def extract(
    tuned: Mapping[str, Tensor], base: Mapping[str, Tensor], cut: Cut
) -> tuple[dict[str, LowRank], Error]:
    """An adapter that turns a base into a fine-tuned model, as closely as `cut` allows.

    Args:
        tuned, base: weights [out, in(, kh, kw)] by module path; layers in one only are passed over.

    Raises:
        AdapterError: if two weights differ in shape, or no weight differs in value.
    """
    adapter, lost, energies = {}, {}, {}
    for path in base.keys() & tuned.keys():
        if tuned[path].shape != base[path].shape:
            raise AdapterError(
                f"The models differ at {path}: {tuple(tuned[path].shape)} and "
                f"{tuple(base[path].shape)}.",
                "Give the base that the model was tuned from.",
            )
        delta = tuned[path].float() - base[path].float()
        if delta.any():
            spectrum = algebra.dense_spectrum(delta)
            adapter[path], lost[path] = algebra.truncated(spectrum, cut, tuple(delta.shape[2:]))
            energies[path] = spectrum.energy
    if not adapter:
        raise AdapterError("There is nothing to extract: the two models are the same.")
    return {path: adapter[path] for path in base if path in adapter}, algebra.error(lost, energies)


def _paths(adapters: Iterable[Adapter]) -> dict[str, None]:
    """All module paths, each once, in the order of first appearance."""
    return dict.fromkeys(path for adapter in adapters for path in adapter)


def at(weight: Weight, path: str) -> float:
    """The weight of one layer."""
    return weight(path) if callable(weight) else weight


def differ_in_shape(path: str) -> AdapterError:
    """The error for adapters that cannot be composed."""
    return AdapterError(
        f"The adapters differ in shape at {path}, so they are made for different bases.",
        "Compose adapters for the same family of Stable Diffusion.",
    )


def _concatenated(path: str, terms: Sequence[tuple[LowRank, float]]) -> LowRank:
    dims = max(layer.down.dim() for layer, _ in terms)
    downs = [_with_dims(layer.down.float(), dims) for layer, _ in terms]
    ups = [_with_dims(factor * layer.scale * layer.up.float(), dims) for layer, factor in terms]
    for one, other in pairwise(zip(ups, downs, strict=True)):
        if one[0].shape[0] != other[0].shape[0] or one[1].shape[1:] != other[1].shape[1:]:
            raise differ_in_shape(path)
    down = torch.cat(downs)
    return LowRank(down, torch.cat(ups, dim=1), float(down.shape[0]))


def _with_dims(factor: Tensor, dims: int) -> Tensor:
    """A linear layer's factor as that of a 1×1 convolution, if `dims` is 4."""
    return factor.reshape(*factor.shape, *[1] * (dims - factor.dim()))
