"""An adapter file told from its header bytes alone: no torch, no tensors, whatever its size.

`read_header` is what the web app lists files with; `Header` is what a file says of itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from trainer.adapter.container import Container, Entry, read_container
from trainer.adapter.keys import FLAT_PREFIXES, Form, split
from trainer.adapter.metadata import Header
from trainer.adapter.recognise import recognise_family
from trainer.model.bases import Family

__all__ = ["FileHeader", "Header", "describe", "read_header"]

_T = TypeVar("_T")

# Roles of the tensor whose first dimension is a layer's rank.
RANKED = ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")


@dataclass(frozen=True)
class FileHeader:
    """What the header of an adapter file tells.

    Attributes:
        header: what the file says of itself; `family` as recognised, `name` the file's if it has
            none.
        metadata: the raw key-value pairs.
        tensors: format and shape of every tensor by key.
        roles: keys by module path and role, of the layers that were understood.
        unused: the keys that were not.
    """

    path: Path
    header: Header
    metadata: Mapping[str, str]
    tensors: Mapping[str, Entry]
    roles: Mapping[str, Mapping[str, str]]
    unused: tuple[str, ...]
    form: Form

    @property
    def family(self) -> Family | None:
        return self.header.family

    @property
    def modules(self) -> int:
        """Number of layers adapted."""
        return len(self.roles)

    @property
    def parts(self) -> Mapping[str, int]:
        """Number of layers adapted in each part: unet, text_encoder, text_encoder_2."""
        return Counter(path.partition(".")[0] for path in self.roles)

    @property
    def ranks(self) -> Mapping[int, int]:
        """How many layers there are of each rank; kinds without a rank are not counted."""
        keys = (
            next((roles[r] for r in RANKED if r in roles), None) for roles in self.roles.values()
        )
        shapes = (self.tensors[key].shape for key in keys if key)
        return Counter(shape[0] for shape in shapes if shape)

    @property
    def rank(self) -> int | None:
        """The rank of most layers."""
        return _most_common(self.ranks)

    @property
    def alpha(self) -> float | None:
        """The alpha that the metadata states; the layers' own are among the tensors."""
        return self.header.alpha

    @property
    def kinds(self) -> Mapping[str, int]:
        """How many layers there are of each kind: LoRA, LoHa, LoKr, full, DoRA."""
        return Counter(_kind(roles) for roles in self.roles.values())

    @property
    def parameters(self) -> int:
        """Number of values in the layers that were understood."""
        keys = (
            key for roles in self.roles.values() for role, key in roles.items() if role != "alpha"
        )
        return sum(self.tensors[key].size for key in keys)

    @property
    def dtype(self) -> str | None:
        """The number format of most values, as safetensors spells it: F16, BF16, F32."""
        sizes: Counter[str] = Counter()
        for entry in self.tensors.values():
            sizes[entry.dtype] += entry.size
        return _most_common(sizes)


def read_header(path: Path) -> FileHeader:
    """What an adapter file holds, from its header alone.

    Raises:
        AdapterError: if the file is missing, is of another kind, or its header is broken.
    """
    return describe(path, read_container(path))


def describe(path: Path, container: Container) -> FileHeader:
    """What an adapter file holds, given its checked header."""
    roles: dict[str, dict[str, str]] = {}
    unused = []
    for key in container.tensors:
        named = split(key)
        if named is None or named[1] in roles.get(named[0], {}):
            unused.append(key)
        else:
            roles.setdefault(named[0], {})[named[1]] = key
    for module in [
        path for path, found in roles.items() if found.keys() <= {"alpha", "dora_scale"}
    ]:
        unused.extend(roles.pop(module).values())
    shapes = {key: entry.shape for key, entry in container.tensors.items()}
    family = recognise_family(shapes, container.metadata)
    header = replace(Header.from_metadata(container.metadata, name=path.stem), family=family)
    flat = sum(key.startswith(FLAT_PREFIXES) for key in container.tensors)
    form: Form = "kohya" if 2 * flat > len(container.tensors) else "diffusers"
    return FileHeader(
        path, header, container.metadata, container.tensors, roles, tuple(unused), form
    )


def _kind(roles: Mapping[str, str]) -> str:
    if "dora_scale" in roles or "magnitude" in roles:
        return "DoRA"
    prefixes = {role.partition("_")[0] for role in roles}
    if "hada" in prefixes:
        return "LoHa"
    if "lokr" in prefixes:
        return "LoKr"
    return "full" if "diff" in prefixes else "LoRA"


def _most_common(counts: Mapping[_T, int]) -> _T | None:
    return max(counts, key=lambda value: counts[value]) if counts else None
