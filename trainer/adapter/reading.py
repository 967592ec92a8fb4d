"""An adapter file of any kind read at exactly the scale its author meant.

The header is checked before a tensor is touched, every tensor before it is used, and what is not
understood is listed, never dropped in silence. Pickles are never opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainer.adapter.container import Container, read_container
from trainer.adapter.factors import Adapter, LowRank
from trainer.adapter.header import Header
from trainer.adapter.keys import Form, split
from trainer.adapter.recognise import recognise_family
from trainer.errors import AdapterError
from trainer.model.bases import Family

_FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
_GET_IT_AGAIN = "Get the file again from where it came from."


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter read from a file.

    Attributes:
        family: None if nothing in the file tells; shapes decide then whether it fits a base.
        unused: keys that were not understood, in the order of the file.
    """

    adapter: Adapter
    header: Header
    family: Family | None
    unused: tuple[str, ...]
    form: Form


def load(path: Path) -> LoadedAdapter:
    """The adapter in a `.safetensors` file; its factors are in fp32 on the CPU.

    Raises:
        AdapterError: if the file is missing, is of another kind, is broken, or holds no adapter.
    """
    container = read_container(path)
    roles, unused = _roles(container)
    if not roles:
        raise AdapterError(f"{path} holds no adapter: {_what_it_is(container)}.")
    tensors = _tensors(path, container, roles)
    adapter = {module: _low_rank(path, module, parts) for module, parts in tensors.items()}
    shapes = {key: entry.shape for key, entry in container.tensors.items()}
    family = recognise_family(shapes, container.metadata)
    header = Header.from_metadata(container.metadata, name=path.stem)
    flat = sum(key.startswith(("lora_", "lycoris_")) for key in container.tensors)
    form: Form = "kohya" if 2 * flat > len(container.tensors) else "diffusers"
    return LoadedAdapter(adapter, replace(header, family=family), family, unused, form)


def _roles(container: Container) -> tuple[dict[str, dict[str, str]], tuple[str, ...]]:
    """Keys by module path and role, and the keys that mean nothing to us."""
    roles: dict[str, dict[str, str]] = {}
    unused = []
    for key in container.tensors:
        named = split(key)
        if named is None or named[1] in roles.get(named[0], {}):
            unused.append(key)
        else:
            roles.setdefault(named[0], {})[named[1]] = key
    for module in [module for module, parts in roles.items() if parts.keys() <= {"alpha"}]:
        unused.extend(roles.pop(module).values())
    return roles, tuple(unused)


def _tensors(
    path: Path, container: Container, roles: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, Tensor]]:
    """The tensors by module path and role, in fp32, all finite."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            found: dict[str, dict[str, Tensor]] = {}
            for module, parts in roles.items():
                for role, key in parts.items():
                    if container.tensors[key].dtype not in _FLOATS:
                        raise AdapterError(
                            f"{path}: {key} holds {container.tensors[key].dtype} values, "
                            "which is no format for an adapter."
                        )
                    tensor = file.get_tensor(key).to(torch.float32, copy=True)
                    if not torch.isfinite(tensor).all():
                        raise AdapterError(
                            f"{path}: {key} has values that are not finite.",
                            "The adapter is broken; its training may have diverged.",
                        )
                    found.setdefault(module, {})[role] = tensor
            return found
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} cannot be read: {error}.", _GET_IT_AGAIN) from None


def _low_rank(path: Path, module: str, parts: Mapping[str, Tensor]) -> LowRank:
    down, up = parts.get("down"), parts.get("up")
    if down is None or up is None:
        raise AdapterError(f"{path}: {module} lacks one of its two factors.", _GET_IT_AGAIN)
    fits = (
        down.dim() in (2, 4)
        and up.dim() in (2, 4)
        and up.shape[1] == down.shape[0] > 0
        and up.shape[2:].numel() == 1
        and min(*down.shape, *up.shape) > 0
    )
    if not fits:
        raise AdapterError(
            f"{path}: the factors of {module}, {_shape(down)} and {_shape(up)}, do not fit.",
            _GET_IT_AGAIN,
        )
    up = up.reshape(*up.shape[:2], *([1, 1] if down.dim() == 4 else []))
    alpha = parts.get("alpha")
    if alpha is not None and alpha.numel() != 1:
        raise AdapterError(f"{path}: the alpha of {module} is not one number.", _GET_IT_AGAIN)
    return LowRank(down, up, float(down.shape[0]) if alpha is None else float(alpha))


def _shape(tensor: Tensor) -> str:
    return "×".join(str(size) for size in tensor.shape)


def _what_it_is(container: Container) -> str:
    """A guess, in words, at what a file without an adapter is."""
    keys = list(container.tensors)
    if not keys:
        return "it is empty"
    if any(key.startswith("model.diffusion_model.") for key in keys):
        return "it is a whole checkpoint, to be given as a base"
    if any(key.startswith(("down_blocks.", "encoder.", "decoder.", "text_model.")) for key in keys):
        return "it is a part of a base model"
    if any("emb_params" in key or key in ("clip_l", "clip_g", "<embedding>") for key in keys):
        return "it is a textual-inversion embedding"
    return f"none of its {len(keys)} tensors has the name of an adapter's"
