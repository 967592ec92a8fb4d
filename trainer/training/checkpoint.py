"""Checkpoints: whole or not at all, and never a pickle.

step-000200.safetensors        the adapter as it would be used
step-000200.state/             what going on needs, beyond settings and data:
    tensors.safetensors        fp32 factors and the optimizer's moments
    state.json                 step, scalars of the optimizer, hash of the tensors, versions

The state folder is renamed into place after its files are on the disk, and its hash is checked when
it is read, so a checkpoint that exists is one that can be resumed from.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from trainer.files import TEMPORARY_SUFFIX, sync

_TENSORS = "tensors.safetensors"
_STATE = "state.json"
_PLACE = "$tensor"


@dataclass(frozen=True)
class Checkpoint:
    """A state to go on from: `step` optimizer steps are done."""

    step: int
    factors: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    average: Mapping[str, Tensor]
    extra: Mapping[str, Any]
    environment: Mapping[str, Any]


def environment() -> dict[str, Any]:
    """What the bits of a run depend on besides its settings and data."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
    }


def differences(saved: Checkpoint) -> str:
    """What has changed since a checkpoint that bits depend on, in words; empty if nothing."""
    now = environment()
    return ", ".join(
        f"{name} was {before}, is {now.get(name)}"
        for name, before in saved.environment.items()
        if before != now.get(name)
    )


def save(
    folder: Path,
    step: int,
    factors: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    average: Mapping[str, Tensor],
    extra: Mapping[str, Any],
    save_adapter: Callable[[Path], None],
) -> Path:
    """Writes the checkpoint of `step` into `folder` and returns its adapter file.

    `average` is the moving average of the factors, if there is one; `extra` is plain JSON;
    `save_adapter(path)` writes the adapter, atomically. Raises OSError if there is no room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    moments: dict[str, Tensor] = {}
    scalars = _split(optimizer.state_dict(), moments)
    tensors = {f"factor/{name}": value for name, value in factors.items()}
    tensors |= {f"optimizer{path}": value for path, value in moments.items()}
    tensors |= {f"average/{name}": value for name, value in average.items()}
    place = folder / f"step-{step:06d}.state"
    temporary = Path(tempfile.mkdtemp(prefix=f"{place.name}.", suffix=TEMPORARY_SUFFIX, dir=folder))
    try:
        content = safetensors.torch.save({name: _plain(value) for name, value in tensors.items()})
        state = {
            "step": step,
            "optimizer": scalars,
            "extra": extra,
            "sha256": hashlib.sha256(content).hexdigest(),
            "environment": environment(),
        }
        for name, data in ((_TENSORS, content), (_STATE, json.dumps(state, indent=1).encode())):
            (temporary / name).write_bytes(data)
            sync(temporary / name)
        if place.exists():
            shutil.rmtree(place)
        temporary.replace(place)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(folder)
    adapter = folder / f"step-{step:06d}.safetensors"
    save_adapter(adapter)
    return adapter


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None if there is none."""
    for place in sorted(folder.glob("step-*.state"), reverse=True):
        checkpoint = _read(place)
        if checkpoint is not None:
            return checkpoint
    return None


def rotate(folder: Path, keep: int) -> None:
    """Removes the states of all but the newest `keep` checkpoints, and the leftovers of writes
    that were cut off. The adapters are small and stay, so that each can be tried."""
    for leftover in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    for old in sorted(folder.glob("step-*.state"), reverse=True)[keep:]:
        shutil.rmtree(old)


def _read(place: Path) -> Checkpoint | None:
    try:
        state = json.loads((place / _STATE).read_bytes())
        content = (place / _TENSORS).read_bytes()
        if hashlib.sha256(content).hexdigest() != state["sha256"]:
            return None
        tensors = safetensors.torch.load(content)
    except (OSError, ValueError, KeyError, SafetensorError):
        return None  # not whole: an older checkpoint is the newest one
    factors = _with_prefix(tensors, "factor/")
    optimizer = _join(state["optimizer"], _with_prefix(tensors, "optimizer"))
    optimizer["state"] = {int(index): values for index, values in optimizer["state"].items()}
    average = _with_prefix(tensors, "average/")
    return Checkpoint(
        state["step"], factors, optimizer, average, state["extra"], state["environment"]
    )


def _split(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """A nested state as plain JSON, its tensors moved to `tensors` under the paths that stand in
    their places."""
    if isinstance(value, Tensor):
        tensors[path] = value
        return {_PLACE: path}
    if isinstance(value, Mapping):
        return {str(key): _split(item, tensors, f"{path}/{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_split(item, tensors, f"{path}/{index}") for index, item in enumerate(value)]
    return value


def _join(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The reverse of `_split`; keys have become text, tuples lists."""
    if isinstance(value, Mapping):
        if _PLACE in value:
            return tensors[value[_PLACE]]
        return {key: _join(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_join(item, tensors) for item in value]
    return value


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _plain(value: Tensor) -> Tensor:
    # Cloned, since some optimizers share a tensor between layers and a file may not.
    return value.detach().cpu().contiguous().clone()
