"""The states among a run's checkpoints: which there are, and which are whole.

checkpoints/step-000200.state/
    tensors.safetensors        fp32 factors and the optimizer's moments
    state.json                 everything else, with the hash of the tensors
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

TENSORS = "tensors.safetensors"
STATE = "state.json"
_SUFFIX = ".state"


def place_of(folder: Path, step: int) -> Path:
    """Where the state of a step is, or would be."""
    return folder / f"step-{step:06d}{_SUFFIX}"


def adapter_of(folder: Path, step: int) -> Path:
    """Where the adapter of a step is, or would be."""
    return folder / f"step-{step:06d}.safetensors"


def step_of(path: Path) -> int:
    """The step of a state or of a checkpoint's adapter."""
    return int(path.stem.removeprefix("step-"))


def newest_first(folder: Path) -> list[Path]:
    """All states, whole or not."""
    return sorted(folder.glob(f"step-*{_SUFFIX}"), key=step_of, reverse=True)


def newest(folder: Path) -> Path | None:
    """The newest state that is whole."""
    return next((place for place in newest_first(folder) if read(place) is not None), None)


def read(place: Path) -> tuple[dict[str, Any], bytes] | None:
    """What `state.json` says and the bytes of the tensors; None if the state is not whole."""
    try:
        state = json.loads((place / STATE).read_bytes())
        content = (place / TENSORS).read_bytes()
        whole = hashlib.sha256(content).hexdigest() == state["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (state, content) if whole else None
