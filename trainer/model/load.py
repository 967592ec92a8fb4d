"""Loading a base from a reference, onto a device, in a precision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.errors import BaseModelError, OutOfMemory, UserError
from trainer.model import load_file, load_folder
from trainer.model.bases import (
    Family,
    FileBase,
    FolderBase,
    HubBase,
    read_config,
    resolve,
)
from trainer.model.configurations import scheduler_config
from trainer.model.describe import describe
from trainer.model.hub import download
from trainer.model.load_folder import VAE_DTYPE
from trainer.model.quantise import is_packed, quantise
from trainer.model.quiet import quiet_libraries
from trainer.model.sdxl import StableDiffusionXL
from trainer.model.single_file import read_single_file
from trainer.model.stable_diffusion import BaseModel, PredictionType, StableDiffusion
from trainer.precision import DTYPES
from trainer.settings import Base, Precision

_CACHE_LINE = 64


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
    quiet_libraries()
    device = choose_device(base.device)
    dtype = choose_dtype(base.precision, device)
    place = locate(base.model)
    try:
        if place.is_dir():
            family = describe(place).family
            config = read_config(place / "scheduler" / "scheduler_config.json")
            parts = load_folder.load_parts(place, family, dtype)
        else:
            file = read_single_file(place)
            family, config = file.family, scheduler_config(file)
            dtypes = dict.fromkeys(file.prefixes(), dtype) | {"vae": VAE_DTYPE}
            parts = load_file.load_parts(file, dtypes)
        _check_fit(place, parts)
        if base.quantization is not None:
            quantise(parts["unet"], base.quantization, dtype)
        model = _assemble(base, family, place, parts, schedule_of(base, config), device, dtype)
    except torch.OutOfMemoryError:
        raise OutOfMemory(
            f"The base {base.model} does not fit on the {device.type} device.",
            "Set base.precision to bf16 or fp16, or base.quantization, or close other programs "
            "that use the GPU.",
        ) from None
    return model


def locate(reference: str) -> Path:
    """The diffusers folder or the single file of a reference, downloaded if it is a hub id not yet
    in the cache."""
    match resolve(reference):
        case FolderBase(path) | FileBase(path):
            return path
        case HubBase() as base:
            return download(base)


def _check_fit(place: Path, parts: Mapping[str, Any]) -> None:
    """Raises BaseModelError if the parts are of different models."""
    given = sum(
        part.config.hidden_size for name, part in parts.items() if name.startswith("text_encoder")
    )
    if (read := parts["unet"].config.cross_attention_dim) != given:
        problem = (
            f"The UNet of {place} reads texts of width {read}, not {given} as its encoders give."
        )
    elif (channels := parts["vae"].config.latent_channels) != parts["unet"].config.in_channels:
        problem = f"The VAE of {place} makes latents of {channels} channels, unlike its UNet's."
    else:
        return
    raise BaseModelError(problem, "Its parts are of different models; get the base again.")


def _assemble(
    base: Base,
    family: Family,
    place: Path,
    parts: dict[str, Any],
    config: dict[str, Any],
    device: torch.device,
    dtype: torch.dtype,
) -> StableDiffusion:
    alphas = _alphas_cumprod(place, config)
    for name, part in parts.items():
        if not name.startswith("tokenizer"):
            _align(part.to(device))
            _check_finite(place, name, part)
    kind = StableDiffusionXL if family is Family.SDXL else StableDiffusion
    return kind(
        family=family,
        reference=base.model,
        place=place,
        **parts,
        prediction_type=config["prediction_type"],
        alphas_cumprod=alphas.to(device),
        scheduler_config=config,
        device=device,
        dtype=dtype,
    )


def _alphas_cumprod(place: Path, config: Mapping[str, Any]) -> Tensor:
    """The noise schedule ᾱ [T] of a base's scheduler configuration.

    Raises:
        BaseModelError: if it does not say which.
    """
    from diffusers import DDPMScheduler

    try:
        if "trained_betas" not in config and not {"beta_start", "beta_end"} <= config.keys():
            raise ValueError("it has no beta_start and beta_end")
        alphas: Tensor = DDPMScheduler.from_config(config).alphas_cumprod
    except (ValueError, TypeError, NotImplementedError) as error:
        raise BaseModelError(
            f"The scheduler of {place} gives no schedule of noise: {error}.",
            "Its scheduler_config.json is broken; get the base again.",
        ) from None
    return alphas


@torch.no_grad()
def _check_finite(place: Path, name: str, part: nn.Module) -> None:
    """Raises BaseModelError if a weight is not finite: nothing could be learned."""
    for key, weight in part.named_parameters():
        if is_packed(weight):
            continue
        extremes = torch.stack(weight.aminmax())
        if not bool(extremes.isfinite().all()):
            raise BaseModelError(
                f"The {name} of {place} has numbers in {key} that are not finite.",
                "The base is broken; get it again.",
            )


def _align(part: nn.Module) -> None:
    """Moves weights that are mapped from a file to whole cache lines: kernels may sum in another
    order elsewhere, and the same base would draw other bits from a folder than from a file."""
    for weight in part.parameters():
        if weight.data_ptr() % _CACHE_LINE and not is_packed(weight):
            weight.data = weight.data.clone()


def schedule_of(base: Base, config: Mapping[str, Any]) -> dict[str, Any]:
    """A base's scheduler configuration, with what the settings override in it.

    Raises:
        BaseModelError: if it predicts something that cannot be trained on.
    """
    predicts: PredictionType = base.prediction_type or config.get("prediction_type", "epsilon")
    rescaled = base.zero_terminal_snr
    if rescaled is None:
        rescaled = bool(config.get("rescale_betas_zero_snr"))
    if predicts not in ("epsilon", "v_prediction"):
        raise BaseModelError(
            f"{base.model} predicts {predicts!r}, which cannot be trained on.",
            "Give a base that predicts epsilon or v_prediction.",
        )
    if rescaled and predicts == "epsilon":
        # At that timestep the input is the noise that is asked for, so nothing is learned from it.
        raise BaseModelError(
            f"{base.model} predicts epsilon, which says nothing where the signal is zero.",
            "Set base.prediction_type to v_prediction if it was made for that, or turn "
            "base.zero_terminal_snr off.",
        )
    changes: dict[str, Any] = {"prediction_type": predicts, "rescale_betas_zero_snr": rescaled}
    if rescaled:  # sampling has to begin where the signal is zero (arXiv:2305.08891, §3.3)
        changes["timestep_spacing"] = "trailing"
    return {**config, **changes}
