"""Checkpoints: whole or not at all, and never a pickle.

step-000200.safetensors        the adapter as it would be used
step-000200.state/             what going on needs, beyond the data:
    tensors.safetensors        fp32 factors and the optimizer's moments
    state.json                 step, settings, scalars of the optimizer, versions, and the hashes of
                               the tensors and of the adapter

The state folder is renamed into place last, after the adapter and its own files are on the disk and
have been read back; its hash is checked again when it is read. So a checkpoint that exists is one
that can be resumed from and used.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
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
from torch import Tensor

from trainer import states
from trainer.files import TEMPORARY_SUFFIX, require_room, sync
from trainer.settings import Settings
from trainer.training import optimizers
from trainer.training.ranks import ALONE, Ranks, here

_PLACE = "$tensor"
_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "numpy", "pillow")


@dataclass(frozen=True)
class Checkpoint:
    """A state to go on from: `step` optimizer steps are done.

    `optimizer` is its state_dict, `average` the moving average of the factors if there is one;
    `extra` and `settings` are plain JSON; `environment` is what bits depend on besides.
    """

    step: int
    factors: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    average: Mapping[str, Tensor]
    extra: Mapping[str, Any]
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]


def environment(wanted: Settings, device: torch.device) -> dict[str, Any]:
    """What the bits of a run on a device depend on besides its settings and data."""
    packages = {*_PACKAGES, optimizers.package_of(wanted.optimizer.name)}
    if wanted.base.quantization is not None:
        packages.add("bitsandbytes")
    on_gpu = device.type == "cuda"
    return {
        **{name: importlib.metadata.version(name) for name in sorted(packages)},
        "threads": torch.get_num_threads(),
        "processes": here().size,
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What has changed that bits depend on, in words; empty if nothing."""
    return ", ".join(
        f"{name} was {value}, is {now.get(name)}"
        for name, value in before.items()
        if value != now.get(name)
    )


def save(folder: Path, new: Checkpoint, save_adapter: Callable[[Path], None]) -> Path:
    """Writes a checkpoint into `folder` and returns its adapter file.

    `save_adapter(path)` writes the adapter, atomically. Raises OSError if there is no room, or if
    what was written cannot be read back; then nothing has changed but, perhaps, the adapter file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    moments: dict[str, Tensor] = {}
    scalars = _split(new.optimizer, moments)
    tensors = {f"factor/{name}": value for name, value in new.factors.items()}
    tensors |= {f"optimizer{path}": value for path, value in moments.items()}
    tensors |= {f"average/{name}": value for name, value in new.average.items()}
    content = safetensors.torch.save({name: _plain(value) for name, value in tensors.items()})
    require_room(folder, 2 * len(content))  # the state, and at most as much for the adapter
    adapter = states.adapter_of(folder, new.step)
    save_adapter(adapter)
    state = {
        "step": new.step,
        "settings": new.settings,
        "optimizer": scalars,
        "extra": new.extra,
        "sha256": hashlib.sha256(content).hexdigest(),
        "adapter_sha256": hashlib.sha256(adapter.read_bytes()).hexdigest(),
        "environment": new.environment,
    }
    _write_state(states.place_of(folder, new.step), content, json.dumps(state, indent=1).encode())
    return adapter


def newest(folder: Path, ranks: Ranks = ALONE) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None if there is none; in every process what the
    first one finds."""
    place = states.newest(folder) if ranks.first else None
    found = states.read(place) if place else None
    state = ranks.share(json.dumps(found[0]).encode() if found else None)
    tensors = ranks.share(found[1] if found else None)
    return _parse(json.loads(state), tensors) if state and tensors else None


def rotate(folder: Path, keep: int, best: int | None = None) -> None:
    """Removes the states of all but the newest `keep` checkpoints and that of step `best`. The
    adapters are small and stay, so that each can be tried."""
    for old in states.newest_first(folder)[keep:]:
        if states.step_of(old) != best:
            shutil.rmtree(old)


def drop_after(folder: Path, step: int) -> None:
    """Removes what lies beyond the checkpoint that a run goes on from: states that are not whole,
    and adapters without one. What is done anew may come out otherwise, with another rate, say."""
    for path in [*states.newest_first(folder), *folder.glob("step-*.safetensors")]:
        if states.step_of(path) > step:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _write_state(place: Path, tensors: bytes, state: bytes) -> None:
    folder = place.parent
    temporary = Path(tempfile.mkdtemp(prefix=f"{place.name}.", suffix=TEMPORARY_SUFFIX, dir=folder))
    try:
        for name, data in ((states.TENSORS, tensors), (states.STATE, state)):
            (temporary / name).write_bytes(data)
            sync(temporary / name)
        if states.read(temporary) is None:
            raise OSError(errno.EIO, "What was written cannot be read back", str(place))
        sync(temporary)
        if place.exists():  # not whole, or it would have been gone on from
            shutil.rmtree(place)
        temporary.replace(place)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(folder)


def _parse(state: Mapping[str, Any], content: bytes) -> Checkpoint:
    tensors = safetensors.torch.load(content)
    optimizer = _join(state["optimizer"], _with_prefix(tensors, "optimizer"))
    optimizer["state"] = {int(index): values for index, values in optimizer["state"].items()}
    return Checkpoint(
        step=state["step"],
        factors=_with_prefix(tensors, "factor/"),
        optimizer=optimizer,
        average=_with_prefix(tensors, "average/"),
        extra=state["extra"],
        settings=state.get("settings", {}),
        environment=state["environment"],
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
