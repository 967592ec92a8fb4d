"""Loading a base from a reference, onto a device, in a precision."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from trainer.errors import BaseModelError, OutOfMemory, UserError
from trainer.model.bases import (
    Family,
    FileBase,
    FolderBase,
    HubBase,
    family_of,
    read_config,
    resolve,
)
from trainer.model.sdxl import StableDiffusionXL
from trainer.model.stable_diffusion import BaseModel, PredictionType, StableDiffusion
from trainer.precision import DTYPES
from trainer.settings import Base, Precision

# What a base is made of; nothing else is downloaded, least of all a pickle.
_WANTED = ["*.json", "*.txt", "*/*.json", "*/*.txt", "unet/*.safetensors", "vae/*.safetensors",
           "text_encoder/*.safetensors", "text_encoder_2/*.safetensors"]  # fmt: skip
# The same weights again, in another precision or before averaging.
_VARIANTS = ["*.fp16.*", "*non_ema*"]
_PARTS = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "tokenizer": "CLIPTokenizer",
}
_SDXL_PARTS = {
    **_PARTS,
    "text_encoder_2": "CLIPTextModelWithProjection",
    "tokenizer_2": "CLIPTokenizer",
}


def choose_device(wanted: str | None) -> torch.device:
    """The device asked for, or the best there is.

    Raises:
        UserError: if the device asked for is not there.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted is None:
        wanted = next(name for name, there in available.items() if there)
    if not available[wanted]:
        there = ", ".join(name for name, is_there in available.items() if is_there)
        raise UserError(f"base.device {wanted} is not available here.", f"There is: {there}.")
    return torch.device(wanted)


def choose_dtype(wanted: Precision | None, device: torch.device) -> torch.dtype:
    """The precision asked for, or the one that fits the device.

    Raises:
        UserError: for fp16 on a CPU, where small gradients would vanish.
    """
    if wanted is None:
        if device.type == "cuda":
            return (
                torch.bfloat16
                if torch.cuda.is_bf16_supported(including_emulation=False)
                else torch.float16
            )
        return torch.float32
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("base.precision fp16 needs a GPU.", "Use fp32 or bf16 on a CPU.")
    return DTYPES[wanted]


def load(base: Base) -> BaseModel:
    """Loads a base with frozen weights.

    Raises:
        BaseModelError: if it is missing, broken or not a kind that can be trained.
        OutOfMemory: if it does not fit on the device.
    """
    device = choose_device(base.device)
    dtype = choose_dtype(base.precision, device)
    folder = locate(base.model)
    family = family_of(folder)
    kinds = _SDXL_PARTS if family is Family.SDXL else _PARTS
    try:
        parts = {
            # SDXL's VAE overflows in half precision, and its images turn black.
            name: _load_part(
                folder, name, kind,
                torch.float32 if name == "vae" and family is Family.SDXL else dtype,
            )
            for name, kind in kinds.items()
        }  # fmt: skip
        model = _assemble(base, family, folder, parts, device, dtype)
    except torch.OutOfMemoryError:
        raise OutOfMemory(
            f"The base {base.model} does not fit on the {device.type} device.",
            "Set base.precision to bf16 or fp16, or close other programs that use the GPU.",
        ) from None
    return model


def locate(reference: str) -> Path:
    """The diffusers folder of a reference, downloaded if it is a hub id not yet in the cache."""
    match resolve(reference):
        case FolderBase(path):
            return path
        case FileBase(path):
            raise BaseModelError(
                f"{path} is a single-file checkpoint, which cannot be read yet.",
                "Give the same model as a diffusers folder or hub id.",
            )
        case HubBase(id):
            return _download(id)


def _download(id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(id, allow_patterns=_WANTED, ignore_patterns=_VARIANTS))
    except RepositoryNotFoundError:
        raise BaseModelError(
            f"There is no base {id!r} on the hub, nor a folder of that name.",
            "Check the name; a gated model needs `hf auth login` first.",
        ) from None
    except (LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BaseModelError(
            f"The base {id!r} is neither a folder here nor in the cache, and the hub could not be "
            f"reached ({reason}).",
            "Check the name and the network, or use `embedded`.",
        ) from None


def _load_part(folder: Path, name: str, kind: str, dtype: torch.dtype) -> Any:
    import diffusers
    import transformers

    # Their progress bars and reports would run through ours.
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    loader = getattr(diffusers, kind, None) or getattr(transformers, kind)
    try:
        if name.startswith("tokenizer"):
            return loader.from_pretrained(folder / name, local_files_only=True)
        if name.startswith("text_encoder"):
            part = loader.from_pretrained(
                folder / name,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                attn_implementation="sdpa",
            )
        else:
            part = loader.from_pretrained(
                folder, subfolder=name, torch_dtype=dtype, local_files_only=True,
                use_safetensors=True,
            )  # fmt: skip
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BaseModelError(
            f"The {name} of {folder} cannot be loaded: {reason}",
            "The base is incomplete, broken or pickled; get it again as .safetensors.",
        ) from None
    part.requires_grad_(False)
    return part.eval()


def _assemble(
    base: Base,
    family: Family,
    folder: Path,
    parts: dict[str, Any],
    device: torch.device,
    dtype: torch.dtype,
) -> StableDiffusion:
    from diffusers import DDPMScheduler

    config = read_config(folder / "scheduler" / "scheduler_config.json")
    prediction_type: PredictionType = base.prediction_type or config.get(
        "prediction_type", "epsilon"
    )
    if prediction_type not in ("epsilon", "v_prediction"):
        raise BaseModelError(
            f"{base.model} predicts {prediction_type!r}, which cannot be trained on.",
            "Give a base that predicts epsilon or v_prediction.",
        )
    schedule = DDPMScheduler.from_config(config)
    for name, part in parts.items():
        if not name.startswith("tokenizer"):
            part.to(device)
    kind = StableDiffusionXL if family is Family.SDXL else StableDiffusion
    return kind(
        family=family,
        reference=base.model,
        folder=folder,
        **parts,
        prediction_type=prediction_type,
        alphas_cumprod=schedule.alphas_cumprod.to(device),
        scheduler_config={**config, "prediction_type": prediction_type},
        device=device,
        dtype=dtype,
    )
