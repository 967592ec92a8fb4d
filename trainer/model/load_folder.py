"""The parts of a base in the diffusers layout, whole or not at all: libraries would fill up what is
missing with random numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from trainer.errors import BaseModelError
from trainer.model.bases import Family

VAE_DTYPE = torch.float32
"""Some VAEs overflow in fp16, SDXL's among them, and their images turn black."""

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


def load_parts(folder: Path, family: Family, dtype: torch.dtype) -> dict[str, Any]:
    """UNet, VAE, text encoders and tokenizers, frozen, on the CPU; the VAE as `VAE_DTYPE`.

    Raises:
        BaseModelError: if a part is missing, incomplete, broken or pickled.
    """
    kinds = _SDXL_PARTS if family is Family.SDXL else _PARTS
    return {
        name: _load_part(folder, name, kind, VAE_DTYPE if name == "vae" else dtype)
        for name, kind in kinds.items()
    }


def _load_part(folder: Path, name: str, kind: str, dtype: torch.dtype) -> Any:
    import diffusers
    import transformers

    loader = getattr(diffusers, kind, None) or getattr(transformers, kind)
    _check_is_there(folder, name)
    options: dict[str, Any] = {
        "local_files_only": True,
        "use_safetensors": True,
        "variant": "fp16" if _half_alone(folder / name) else None,
        "output_loading_info": True,
    }
    try:
        if name.startswith("tokenizer"):
            return loader.from_pretrained(folder / name, local_files_only=True)
        if name.startswith("text_encoder"):
            part, told = loader.from_pretrained(
                folder / name, dtype=dtype, attn_implementation="sdpa", **options
            )
        else:
            part, told = loader.from_pretrained(
                folder, subfolder=name, torch_dtype=dtype, **options
            )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, StrictDataclassError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:2]) or type(error).__name__
        raise BaseModelError(
            f"The {name} of {folder} cannot be loaded: {reason}",
            "The base is incomplete, broken or pickled; get it again as .safetensors.",
        ) from None
    if missing := sorted(told["missing_keys"]):
        raise BaseModelError(
            f"The {name} of {folder} lacks {len(missing)} of its tensors, such as {missing[0]}.",
            "The base is incomplete; get it again.",
        )
    part.requires_grad_(False)
    return part.eval()


def _check_is_there(folder: Path, name: str) -> None:
    """Raises BaseModelError if a folder of a base lacks one of its parts."""
    files = {file.name for file in (folder / name).glob("*")}
    words = "tokenizer.json" in files or {"vocab.json", "merges.txt"} <= files
    if not files or (name.startswith("tokenizer") and not words):
        raise BaseModelError(
            f"{folder} has no {name}, or an empty one.", "The base is incomplete; get it again."
        )


def _half_alone(folder: Path) -> bool:
    """Whether a part's weights are there in half precision only, under the name that hubs use."""
    names = [file.name for file in folder.glob("*.safetensors")]
    return bool(names) and all(".fp16." in name or ".fp16-" in name for name in names)
