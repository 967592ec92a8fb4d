"""Single weights of a base read from its folder, without building the model.

For what depends on the base's weights but runs nothing: DoRA to plain LoRA.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainer.errors import BaseModelError


def read_weights(folder: Path, paths: Iterable[str]) -> dict[str, Tensor]:
    """The weights [out, in(, kh, kw)] of the layers at `paths`; those it lacks are left out.

    Args:
        folder: a base in the diffusers layout.

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
    for part, keys in wanted.items():
        for file in sorted((folder / part).glob("*.safetensors")):
            weights.update(_read(file, keys))
    return weights


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
