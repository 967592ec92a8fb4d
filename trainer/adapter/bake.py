"""A base with an adapter baked in, as a new diffusers folder; the old one is not touched."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainer.adapter.base_weights import read_weights
from trainer.adapter.factors import Adapter
from trainer.adapter.fuse import FuseReport, fuse
from trainer.errors import AdapterError, UserError
from trainer.files import TEMPORARY_SUFFIX, sync
from trainer.model.load_file import unpack
from trainer.model.single_file import read_single_file


def bake(
    base: Path, adapter: Adapter, output: Path, dtype: torch.dtype | None = None
) -> FuseReport:
    """Writes `base`, a diffusers folder or a single file, with `adapter` in its weights to the new
    diffusers folder `output`.

    Sums are formed in fp32 and rounded once to `dtype`, or to the weights' own. The folder appears
    whole or not at all.

    Raises:
        UserError: if `output` exists, or its parent does not.
        AdapterError: if the adapter does not fit, or rounding would lose it.
    """
    if output.exists():
        raise UserError(f"{output} exists already.", "Name a new folder.")
    if not output.parent.is_dir():
        raise UserError(f"There is no folder {output.parent}.", "Make it first.")
    weights = read_weights(base, adapter)
    if missing := [path for path in adapter if path not in weights]:
        raise AdapterError(
            f"The adapter is made for another base: this one has no {missing[0]}.",
            "Use it with the base it was trained on.",
        )
    fused, report = fuse(weights, adapter, dtype)
    changed = {path: fused[path] for path in adapter}
    temporary = Path(
        tempfile.mkdtemp(prefix=f"{output.name}.", suffix=TEMPORARY_SUFFIX, dir=output.parent)
    )
    source = base
    try:
        if base.is_file():
            source = temporary
            unpack(read_single_file(base), temporary)
        for file in sorted(source.rglob("*")):
            place = temporary / file.relative_to(source)
            if file.is_dir():
                place.mkdir(exist_ok=True)
            elif file.suffix == ".safetensors" and _part(file, source) in _parts(adapter):
                _rewrite(file, place, _part(file, source), changed)
            elif file != place:
                shutil.copy2(file, place)
        temporary.chmod(0o755)
        temporary.replace(output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(output.parent)
    return report


def _part(file: Path, base: Path) -> str:
    return file.relative_to(base).parts[0]


def _parts(adapter: Adapter) -> set[str]:
    return {path.partition(".")[0] for path in adapter}


def _rewrite(file: Path, place: Path, part: str, changed: Mapping[str, Tensor]) -> None:
    """Copies a file of weights with the changed ones in it, and syncs it."""
    with safe_open(file, framework="pt", device="cpu") as source:
        metadata = source.metadata()
        tensors = {key: source.get_tensor(key) for key in source.keys()}  # noqa: SIM118 - no dict
    for key in tensors:
        module = key.removesuffix(".weight")
        for path in (f"{part}.{module}", f"{part}.text_model.{module}"):
            if key.endswith(".weight") and path in changed:
                tensors[key] = changed[path].contiguous()
    save_file(tensors, place, metadata)
    sync(place)
