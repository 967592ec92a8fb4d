"""Where a picture begins: its size, its noise, and the image that it may start from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainer.data.buckets import Size
from trainer.data.images import open_image, open_mask
from trainer.data.latents import fit, to_tensor
from trainer.errors import UserError
from trainer.model.stable_diffusion import BaseModel

if TYPE_CHECKING:
    from PIL import Image

    from trainer.preview.render import Picture


@dataclass(frozen=True)
class Start:
    """Noisy latents [1, C, h, w] on the model's device, the timesteps from there to the image, and
    the generator that drew the noise, to go on with."""

    latents: Tensor
    timesteps: Tensor
    generator: torch.Generator


def begin(model: BaseModel, picture: Picture, scheduler: Any) -> Start:
    """The first latents of a picture. All noise comes from its seed, drawn on the CPU so that every
    device starts alike.

    Raises:
        DatasetError: if the initial image cannot be read.
        UserError: if so little is denoised that no step is left.
    """
    scheduler.set_timesteps(picture.steps, device=model.device)
    image = None if picture.initial_image is None else open_image(picture.initial_image)
    size = size_of(model, picture, image)
    generator = torch.Generator().manual_seed(picture.seed)
    shape = (
        1,
        model.latent_channels,
        size.height // model.downscale,
        size.width // model.downscale,
    )
    noise = torch.randn(shape, generator=generator).to(model.device)
    if image is None:
        return Start(noise * scheduler.init_noise_sigma, scheduler.timesteps, generator)
    # As diffusers' image-to-image does: the last `denoise` of the steps, from the image with as
    # much noise as the first of them expects.
    taken = int(picture.steps * picture.denoise)
    if taken == 0:
        raise UserError(
            f"Denoising {picture.denoise:g} of {picture.steps} steps leaves none to take.",
            "Denoise more, or take more steps.",
        )
    skipped = picture.steps - taken
    timesteps = scheduler.timesteps[skipped * scheduler.order :]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped * scheduler.order)
    clean = model.encode_images(to_tensor(fit(image, size))[None])
    return Start(scheduler.add_noise(clean, noise, timesteps[:1]), timesteps, generator)


def size_of(model: BaseModel, picture: Picture, image: Image.Image | None = None) -> Size:
    """The size of a picture in pixels: as asked for; else, of an initial image, its shape at the
    base's own area; else the base's own."""
    width = height = float(model.native_size)
    if image is not None:
        shape = math.sqrt(image.width / image.height)
        width, height = width * shape, height / shape
        if picture.width and not picture.height:
            height = picture.width * image.height / image.width
        elif picture.height and not picture.width:
            width = picture.height * image.width / image.height
    return Size(
        picture.width or _rounded(width, model.downscale),
        picture.height or _rounded(height, model.downscale),
    )


def latent_mask(file: Path, latents: Tensor) -> Tensor | None:
    """A region mask as weights [1, 1, h, w] for latents [B, C, h, w], 1 where the image in `file`
    is white; None if that is everywhere.

    Raises:
        DatasetError: if the image cannot be read.
    """
    height, width = latents.shape[-2:]
    mask = fit(open_mask(file).convert("RGB"), Size(width, height))
    weights = ((to_tensor(mask)[:1] + 1) / 2)[None].to(latents.device)
    return None if bool((weights == 1).all()) else weights


def _rounded(side: float, unit: int) -> int:
    return max(1, round(side / unit)) * unit
