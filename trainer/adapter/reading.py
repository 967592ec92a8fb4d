"""An adapter file of any kind read at exactly the scale its author meant.

The header is checked before a tensor is touched, every tensor before it is used, and what is not
understood is listed, never dropped in silence. Pickles are never opened.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainer.adapter import algebra
from trainer.adapter.algebra import Cut, Error
from trainer.adapter.assemble import assemble
from trainer.adapter.container import Container, read_container
from trainer.adapter.factors import Adapter, LowRank
from trainer.adapter.header import RANKED, Header, describe
from trainer.adapter.keys import Form, kernel_size
from trainer.adapter.kinds import DoRA, Layer
from trainer.adapter.peft import Scaling, scalings
from trainer.adapter.plain import to_low_rank
from trainer.errors import AdapterError
from trainer.model.bases import Family

_FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
_GET_IT_AGAIN = "Get the file again from where it came from."


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter read from a file.

    Attributes:
        layers: by module path, each of the kind that the file holds.
        family: None if nothing in the file tells; shapes decide then whether it fits a base.
        unused: keys that were not understood, in the order of the file.
        form: how the file names its layers.
    """

    path: Path
    layers: Mapping[str, Layer]
    header: Header
    family: Family | None
    unused: tuple[str, ...]
    form: Form

    @property
    def kinds(self) -> Mapping[str, int]:
        """How many layers there are of each kind: LowRank, LoHa, LoKr, Full, DoRA."""
        return Counter(type(layer).__name__ for layer in self.layers.values())

    @cached_property
    def adapter(self) -> Adapter:
        """The layers as plain factors, exactly.

        Raises:
            AdapterError: if a layer is DoRA, which needs the base: use `plain`.
        """
        return self.plain()[0]

    def plain(
        self, cut: Cut | None = None, base_weights: Mapping[str, Tensor] | None = None
    ) -> tuple[dict[str, LowRank], Error]:
        """The layers as plain factors, with what a `cut` loses; exactly without one.

        `base_weights` are the base's, by module path; DoRA needs those of its layers.

        Raises:
            AdapterError: if a weight that DoRA needs is not given.
        """
        adapter, lost, energies = {}, {}, {}
        for module, layer in self.layers.items():
            if isinstance(layer, LowRank) and cut is None:
                adapter[module], lost[module], energies[module] = layer, 0.0, 1.0
                continue
            weight = base_weights.get(module) if base_weights else None
            if isinstance(layer, DoRA):
                self._check_base(module, layer, weight)
            adapter[module], lost[module], energies[module] = to_low_rank(layer, cut, weight)
        return adapter, algebra.error(lost, energies)

    def _check_base(self, module: str, layer: DoRA, weight: Tensor | None) -> None:
        if weight is None:
            raise AdapterError(
                f"{self.path} is a DoRA adapter, whose effect depends on the base's {module}.",
                "Give the base it is made for; it is then converted to a plain LoRA.",
            )
        if math.prod(layer.direction.shape) != weight.numel():
            raise AdapterError(
                f"{self.path} is made for another base: its {module} is of another shape.",
                "Give the base it was trained on.",
            )


def load(path: Path) -> LoadedAdapter:
    """The adapter in a `.safetensors` file, in fp32 on the CPU.

    Raises:
        AdapterError: if the file is missing, is of another kind, is broken, or holds no adapter.
    """
    container = read_container(path)
    found = describe(path, container)
    if not found.roles:
        raise AdapterError(f"{path} holds no adapter: {_what_it_is(container)}.")
    tensors = _tensors(path, container, found.roles)
    configured = scalings(path, container.metadata)
    layers = {module: _layer(path, module, parts, configured) for module, parts in tensors.items()}
    return LoadedAdapter(path, layers, found.header, found.family, found.unused, found.form)


def _layer(
    path: Path, module: str, parts: Mapping[str, Tensor], configured: Mapping[str, Scaling]
) -> Layer:
    part, _, rest = module.partition(".")
    scaling = configured.get(part) or configured.get("")
    ranked = next((parts[role] for role in RANKED if role in parts and parts[role].dim()), None)
    alpha = None
    if scaling and ranked is not None:
        alpha = scaling.effective_alpha(rest, ranked.shape[0])
    try:
        return assemble(parts, kernel=kernel_size(module), alpha=alpha)
    except ValueError as error:
        raise AdapterError(f"{path}: the layer {module} {error}.", _GET_IT_AGAIN) from None


def _tensors(
    path: Path, container: Container, roles: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, Tensor]]:
    """The tensors by module path and role, in fp32, all finite."""
    found: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for module, parts in roles.items():
                found[module] = {}
                for role, key in parts.items():
                    if container.tensors[key].dtype not in _FLOATS:
                        raise AdapterError(
                            f"{path}: {key} holds {container.tensors[key].dtype} values, "
                            "which is no format for an adapter."
                        )
                    # A copy: the file's memory is mapped, and the file may change.
                    tensor = file.get_tensor(key).to(torch.float32, copy=True)
                    if not _all_finite(tensor):
                        raise AdapterError(
                            f"{path}: {key} has values that are not finite.",
                            "The adapter is broken; its training may have diverged.",
                        )
                    found[module][role] = tensor
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} cannot be read: {error}.", _GET_IT_AGAIN) from None
    return found


def _all_finite(tensor: Tensor) -> bool:
    # A sum is finite only if every term is, and needs no memory; it may overflow all the same.
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _what_it_is(container: Container) -> str:
    """A guess, in words, at what a file without an adapter is."""
    keys = list(container.tensors)
    if not keys:
        return "it is empty"
    if any(key.startswith("model.diffusion_model.") for key in keys):
        return "it is a whole checkpoint, to be given as a base"
    if any("emb_params" in key or key in ("clip_l", "clip_g", "<embedding>") for key in keys):
        return "it is a textual-inversion embedding"
    if any(".oft_blocks" in key or ".oft_diag" in key for key in keys):
        return "it is of the OFT kind, which is not supported"
    if any(key.endswith((".a1.weight", ".on_input")) for key in keys):
        return "it is of the GLoRA or IA3 kind, which is not supported"
    if any(key.startswith(("down_blocks.", "encoder.", "decoder.", "text_model.")) for key in keys):
        return "it is a part of a base model"
    return f"none of its {len(keys)} tensors has the name of an adapter's"
