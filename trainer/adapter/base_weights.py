"""Single weights of a base read from its files, without building the model.

For what depends on the base's weights but runs nothing: DoRA to plain LoRA.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainer.errors import BaseModelError
from trainer.model.load_file import converted
from trainer.model.single_file import SingleFile, read_single_file


def read_weights(place: Path, paths: Iterable[str]) -> dict[str, Tensor]:
    """The weights [out, in(, kh, kw)] of the layers at `paths`; those it lacks are left out.

    Args:
        place: a base in the diffusers layout, or a single file.

    Raises:
        BaseModelError: if a file of weights is broken.
    """
    wanted: dict[str, dict[str, str]] = {}  # part -> key in the file -> module path
    for path in paths:
        part, _, module = path.partition(".")
        keys = wanted.setdefault(part, {})
        keys[f"{module}.weight"] = path
        keys[f"{module.removeprefix('text_model.')}.weight"] = path  # as transformers 5 saves them
    weights: dict[str, Tensor] = {}
    if place.is_file():
        return _from_single_file(read_single_file(place), wanted)
    for part, keys in wanted.items():
        for file in sorted((place / part).glob("*.safetensors")):
            weights.update(_read(file, keys))
    return weights


def _from_single_file(
    file: SingleFile, wanted: Mapping[str, Mapping[str, str]]
) -> dict[str, Tensor]:
    return {
        keys[key]: tensor.clone()
        for part, keys in wanted.items()
        if part in file.prefixes()
        for key, tensor in converted(file, part).items()
        if key in keys
    }


def _read(file: Path, keys: dict[str, str]) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt", device="cpu") as tensors:
            return {
                keys[key]: tensors.get_tensor(key).clone()
                for key in tensors.keys()  # noqa: SIM118 - not a dict
                if key in keys
            }
    except (SafetensorError, OSError) as error:
        raise BaseModelError(f"{file} cannot be read: {error}.", "Get the base again.") from None
