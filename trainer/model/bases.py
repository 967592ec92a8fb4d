"""What a base reference is, and which family of Stable Diffusion it belongs to. No torch here.

A reference is `embedded` (the small base that ships), a folder in the diffusers layout, a single
`.safetensors` file, or a hub id: `owner/name`, with `@revision` (a branch, a tag or a commit) if it
is not to be the newest, and `/file.safetensors` if it is one file of that repository.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from trainer.errors import BaseModelError

EMBEDDED = "embedded"
HUB_ID = re.compile(
    r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(@(?P<revision>refs/pr/\d+|[\w.-]+))?"
    r"(/(?P<file>[\w./ -]+\.safetensors))?",
    re.ASCII,
)
_LONGEST_HUB_ID = 96
_PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}


class Family(StrEnum):
    """The generations of Stable Diffusion, told apart by their text encoders."""

    SD1 = "sd1"
    SD2 = "sd2"
    SDXL = "sdxl"

    @property
    def full_name(self) -> str:
        return {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "SDXL"}[self]


@dataclass(frozen=True)
class FolderBase:
    """A folder in the diffusers layout; `embedded` is one too."""

    path: Path


@dataclass(frozen=True)
class FileBase:
    """A single `.safetensors` checkpoint."""

    path: Path


@dataclass(frozen=True)
class HubBase:
    """A model on the hub, `owner/name`, downloaded once and read from its cache afterwards; one
    `file` of it if that is named."""

    id: str
    revision: str | None = None
    file: str | None = None


BaseReference = FolderBase | FileBase | HubBase


def resolve(reference: str) -> BaseReference:
    """What kind of base a reference names.

    Raises:
        BaseModelError: if there is no such folder or file and it cannot be a hub id, or if it is a
            pickled checkpoint.
    """
    if reference == EMBEDDED:
        from trainer.model.embedded import WEIGHTS

        return FolderBase(WEIGHTS)
    try:
        path = Path(reference).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError):  # too long, an unknown ~user, a NUL
        raise BaseModelError(f"{reference[:80]!r} cannot be a path or a hub id.") from None
    if path.suffix.lower() in _PICKLES:
        raise BaseModelError(
            f"{reference} is a pickled checkpoint, which can run any program when it is opened.",
            "Get the same model as .safetensors.",
        )
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise BaseModelError(
                f"{reference} is not a diffusers model: it has no model_index.json.",
                "Give the folder that holds unet/, vae/, text_encoder/ and model_index.json.",
            )
        return FolderBase(path)
    if path.is_file():
        if path.suffix.lower() != ".safetensors":
            raise BaseModelError(
                f"{reference} is not a .safetensors file.",
                "Give a diffusers folder, a .safetensors checkpoint, a hub id or `embedded`.",
            )
        return FileBase(path)
    if match := HUB_ID.fullmatch(reference):
        return _on_hub(**match.groupdict())
    raise BaseModelError(
        f"There is no base {reference!r}: no such folder or file, and not a hub id (owner/name).",
        "Check the path, or use `embedded`.",
    )


def is_on_hub(reference: str) -> bool:
    """Whether a reference names something on the hub, and not a path here that looks like it."""
    try:
        return isinstance(resolve(reference), HubBase)
    except BaseModelError:
        return False


def _on_hub(id: str, revision: str | None, file: str | None) -> HubBase:
    outside = file is not None and ".." in file.split("/")
    if (
        outside
        or "--" in id
        or ".." in id
        or id.endswith((".git", "-", "."))
        or len(id) > _LONGEST_HUB_ID
    ):
        raise BaseModelError(
            f"There is no folder or file {id!r}, and a hub id has neither `--` nor `..`, does not "
            f"end in `-`, `.` or `.git`, and is {_LONGEST_HUB_ID} letters at most.",
            "Check the path, or copy the id from the model's page.",
        )
    return HubBase(id, revision, file)


def family_of(folder: Path) -> Family:
    """The family of a diffusers folder, from its configuration files alone.

    SDXL has a second text encoder; SD 2 has OpenCLIP's, whose activation is plain GELU where CLIP's
    is quick GELU (widths tell nothing: small test models and the embedded base have their own).

    Raises:
        BaseModelError: if a file is missing or broken, or the pipeline is of another kind.
    """
    index = read_config(folder / "model_index.json")
    pipeline = str(index.get("_class_name", ""))
    if "text_encoder_2" in index and "XL" in pipeline:
        if index.get("text_encoder") in (None, [None, None]):
            raise BaseModelError(f"{folder} is SDXL's refiner.", "Give the SDXL base.")
        return Family.SDXL
    if not pipeline.startswith("StableDiffusion") or pipeline.startswith("StableDiffusion3"):
        raise BaseModelError(
            f"{folder} holds a {pipeline or 'model of unknown kind'}, which is not supported.",
            "Give a Stable Diffusion 1.x, 2.x or SDXL base.",
        )
    config = read_config(folder / "text_encoder" / "config.json")
    return Family.SD2 if config.get("hidden_act") == "gelu" else Family.SD1


def read_config(path: Path) -> dict[str, Any]:
    """A configuration file of a base. Raises BaseModelError if it is missing or broken."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BaseModelError(
            f"{path} cannot be read: {error.strerror}.", "The base is incomplete; get it again."
        ) from None
    except ValueError:
        raise BaseModelError(f"{path} is not JSON.", "The base is broken; get it again.") from None
    if not isinstance(content, dict):
        raise BaseModelError(f"{path} does not hold a JSON object.", "Get the base again.")
    return content
