"""Images from prompts, with adapters at strengths.

A strip over strengths is one batch: every image has a gate of its own, and all start from the same
noise, so that only the strength differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from trainer.adapter.attach import Attachment, Strength
from trainer.data.latents import to_image
from trainer.model.stable_diffusion import BaseModel, Conditioning


class Cancelled(Exception):
    """The images were given up between two denoising steps."""


@dataclass(frozen=True)
class Picture:
    """What to draw. `width` and `height` are pixels, by default the base's own size; `guidance` is
    the classifier-free guidance scale (Ho & Salimans, 2022, arXiv:2207.12598), 1 for none."""

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    steps: int = 20
    guidance: float = 7.0
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True)
class PartStrength:
    """The strength of one adapter in each part of the model."""

    unet: float = 1.0
    text_encoder: float = 1.0

    def at(self, path: str) -> float:
        return self.unet if path.startswith("unet.") else self.text_encoder


@torch.no_grad()
def render(
    model: BaseModel,
    picture: Picture,
    attachment: Attachment | None = None,
    strengths: Mapping[str, PartStrength] | None = None,
    strip: Sequence[float] = (1.0,),
    on_step: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[Image.Image]:
    """Draws the picture once for each factor of `strip`, by which all strengths are multiplied.

    `on_step(done, total)` is called after each denoising step. The attachment's strengths are left
    as they were last set here. The global random state is not touched.

    Raises:
        Cancelled: when `cancelled()` becomes true.
    """
    count, guided = len(strip), picture.guidance > 1
    if attachment is not None:
        _set_strengths(attachment, strengths or {}, strip, copies=2 if guided else 1)
    prompts = [picture.negative_prompt] * count * guided + [picture.prompt] * count
    conditioning = model.encode_prompts(prompts)
    scheduler = _scheduler(model)
    scheduler.set_timesteps(picture.steps, device=model.device)
    latents = initial_noise(model, picture) * scheduler.init_noise_sigma
    latents = latents.to(model.device).expand(count, -1, -1, -1)
    for done, timestep in enumerate(scheduler.timesteps, start=1):
        if cancelled():
            raise Cancelled
        prediction = _predict(model, scheduler, latents, timestep, conditioning, picture.guidance)
        latents = scheduler.step(prediction, timestep, latents).prev_sample
        on_step(done, len(scheduler.timesteps))
    # One by one: decoding takes far more memory than denoising.
    return [to_image(model.decode_latents(one[None])[0]) for one in latents]


def initial_noise(model: BaseModel, picture: Picture) -> Tensor:
    """[1, C, h, w] from the picture's seed, drawn on the CPU so that every device starts alike."""
    height = (picture.height or model.native_size) // model.downscale
    width = (picture.width or model.native_size) // model.downscale
    generator = torch.Generator().manual_seed(picture.seed)
    return torch.randn((1, model.latent_channels, height, width), generator=generator)


def _predict(
    model: BaseModel,
    scheduler: Any,
    latents: Tensor,
    timestep: Tensor,
    conditioning: Conditioning,
    guidance: float,
) -> Tensor:
    inputs = torch.cat([latents, latents]) if guidance > 1 else latents
    inputs = scheduler.scale_model_input(inputs, timestep)
    prediction = model.predict(inputs, timestep, conditioning)
    if guidance <= 1:
        return prediction
    without, with_ = prediction.chunk(2)
    return without + guidance * (with_ - without)


def _set_strengths(
    attachment: Attachment,
    strengths: Mapping[str, PartStrength],
    strip: Sequence[float],
    copies: int,
) -> None:
    if len(strip) == 1:
        factor: float | Tensor = strip[0]
    else:
        factor = torch.tensor(strip, dtype=torch.float32).repeat(copies)

    def at(strength: PartStrength) -> Strength:
        # A plain 0 turns the layer off; a zero per image would still cost the products.
        return lambda path: strength.at(path) and strength.at(path) * factor

    attachment.set({name: at(strength) for name, strength in strengths.items()})


def _scheduler(model: BaseModel) -> Any:
    from diffusers import DDIMScheduler

    # Clipping is for models of pixels; configurations written for other schedulers leave it out.
    return DDIMScheduler.from_config({"clip_sample": False, **model.scheduler_config})
