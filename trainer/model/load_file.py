"""The parts of a single-file checkpoint as diffusers' models, without a hub and without its
configurations: names are converted by diffusers' own converters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainer.errors import BaseModelError
from trainer.model import configurations
from trainer.model.bases import Family
from trainer.model.clip_tokenizer import clip_tokenizer, padding_of
from trainer.model.quiet import quiet_libraries
from trainer.model.single_file import SingleFile

# What libraries raise for layers that are missing or of shapes that cannot be.
_MALFORMED = (
    LookupError, StopIteration, AttributeError, TypeError, ValueError, ArithmeticError, RuntimeError
)  # fmt: skip


def load_parts(file: SingleFile, dtypes: Mapping[str, torch.dtype]) -> dict[str, Any]:
    """UNet, VAE, text encoders and tokenizers, frozen, on the CPU.

    `dtypes` are by part; one that is not named keeps the file's own.

    Raises:
        BaseModelError: if a part is not as its family has it.
    """
    parts: dict[str, Any] = {}
    for name in file.prefixes():
        parts[name] = _load_part(file, name, dtypes.get(name))
        if name.startswith("text_encoder"):
            tokenizer = name.replace("text_encoder", "tokenizer")
            words = configurations.text_config(file, name)["vocab_size"]
            parts[tokenizer] = clip_tokenizer(words, padding_of(tokenizer, file.family))
    return parts


def converted(file: SingleFile, part: str) -> dict[str, Tensor]:
    """The tensors of a part under diffusers' names; most are views into the file.

    Raises:
        BaseModelError: if the file cannot be read or its layers are not those of the family.
    """
    quiet_libraries()
    from diffusers.loaders import single_file_utils as original

    prefix = file.prefixes()[part]
    try:
        tensors = _read(file, prefix)
        if part == "unet":
            found = original.convert_ldm_unet_checkpoint(tensors, configurations.unet_config(file))
        elif part == "vae":
            found = original.convert_ldm_vae_checkpoint(tensors, configurations.vae_config(file))
        elif configurations.is_open_clip(prefix):
            config = SimpleNamespace(**configurations.text_config(file, part))
            stand_in = SimpleNamespace(config=config)
            found = original.convert_open_clip_checkpoint(stand_in, tensors, prefix=prefix)
        else:
            found = {
                f"text_model.{name.removeprefix(prefix).removeprefix('text_model.')}": tensor
                for name, tensor in tensors.items()
            }
    except _MALFORMED as error:
        raise _unlike(file, part, f"{type(error).__name__}: {error}") from None
    return dict(found)


def unpack(file: SingleFile, folder: Path) -> None:
    """Writes a checkpoint as a diffusers folder, in the file's own precision."""
    import diffusers

    quiet_libraries()
    parts = load_parts(file, {})
    scheduler = diffusers.DDIMScheduler.from_config(configurations.scheduler_config(file))
    if file.family is Family.SDXL:
        pipeline = diffusers.StableDiffusionXLPipeline(**parts, scheduler=scheduler)
    else:
        pipeline = diffusers.StableDiffusionPipeline(
            **parts, scheduler=scheduler, safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
    pipeline.save_pretrained(folder)


def _load_part(file: SingleFile, part: str, dtype: torch.dtype | None) -> Any:
    tensors = converted(file, part)
    model = _empty(file, part)
    if not hasattr(model, "text_model"):  # newer versions of transformers lack this level
        tensors = {name.removeprefix("text_model."): t for name, t in tensors.items()}
    wanted = model.state_dict()
    for name, blank in wanted.items():
        if name not in tensors:
            raise _unlike(file, part, f"there is no {name}")
        if tensors[name].shape != blank.shape:
            raise _unlike(
                file, part, f"{name} is {tuple(tensors[name].shape)}, not {tuple(blank.shape)}"
            )
        if not tensors[name].is_floating_point():
            raise _unlike(file, part, f"{name} holds whole numbers, {tensors[name].dtype}")
    # Copied, so that nothing happens to a model in use when its file is overwritten.
    state = {name: tensors[name].to(dtype or tensors[name].dtype, copy=True) for name in wanted}
    model.load_state_dict(state, assign=True)
    model.requires_grad_(False)
    return model.eval()


def _empty(file: SingleFile, part: str) -> Any:
    """The model of a part without weights, whatever its size in no time."""
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    try:
        with init_empty_weights(include_buffers=False):
            if part == "unet":
                return UNet2DConditionModel(**configurations.unet_config(file))
            if part == "vae":
                return AutoencoderKL(**configurations.vae_config(file))
            kind = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
            config = CLIPTextConfig(**configurations.text_config(file, part))
            config._attn_implementation = "sdpa"
            return kind(config)
    except _MALFORMED as error:
        raise _unlike(file, part, f"{type(error).__name__}: {error}") from None


def _read(file: SingleFile, prefix: str) -> dict[str, Tensor]:
    try:
        with safe_open(file.path, framework="pt", device="cpu") as content:
            return {
                name: content.get_tensor(name) for name in file.shapes if name.startswith(prefix)
            }
    except (SafetensorError, OSError) as error:
        raise BaseModelError(
            f"{file.path} cannot be read: {error}.", "Get the base again."
        ) from None


def _unlike(file: SingleFile, part: str, why: str) -> BaseModelError:
    return BaseModelError(
        f"The {part} of {file.path} is not built as those of {file.family.full_name} are ({why}).",
        "The file is incomplete or of a model with layers of its own; give it as a diffusers "
        "folder.",
    )
