"""`atelier doctor`: what this machine has, what is missing, and how to get it."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys
from pathlib import Path

_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "pillow", "gradio")
_OPTIONAL = {
    "bitsandbytes": "pip install bitsandbytes, for the 8-bit optimizer and packed bases",
    "prodigyopt": "pip install prodigyopt, for Prodigy",
    "lion-pytorch": "pip install lion-pytorch, for Lion",
    "schedulefree": "pip install schedulefree, for schedule-free AdamW",
}
_LEAST_FREE_GB = 5.0


def examine() -> tuple[str, bool]:
    """A report in words, and whether training can work here."""
    lines = [f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"]
    problems = []
    for name in _PACKAGES:
        version = _version(name)
        lines.append(f"{name} {version or 'is missing'}")
        if version is None:
            problems.append(f"{name} is missing: run `{sys.executable} -m pip install -e .`")
    lines += [f"{name} is not installed ({how})" for name, how in _OPTIONAL.items()
              if _version(name) is None]  # fmt: skip
    if _version("torch"):
        lines += _devices()
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    lines.append(f"{free:.0f} GB free on this disk")
    if free < _LEAST_FREE_GB:
        problems.append(f"Only {free:.1f} GB of disk is free; a base alone may need 4 to 7 GB.")
    lines += [f"Problem: {problem}" for problem in problems] or ["All is well."]
    return "\n".join(lines), not problems


def _devices() -> list[str]:
    import torch

    lines = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        lines.append(f"GPU {index}: {name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free")
    if torch.backends.mps.is_available():
        lines.append("GPU: Apple (mps)")
    if not lines:
        hint = ""
        if torch.version.cuda is None and platform.system() != "Darwin":
            hint = "; this torch is built without CUDA, see https://pytorch.org/get-started"
        lines.append(
            f"No GPU: training runs on the CPU with {torch.get_num_threads()} threads{hint}"
        )
    return lines


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
