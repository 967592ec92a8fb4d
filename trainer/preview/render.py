"""Images from prompts, with adapters at strengths.

A strip over strengths is one batch: every image has a gate of its own, and all start from the same
noise, so that only the strength differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from trainer.adapter.attach import Attachment
from trainer.data.latents import to_image
from trainer.model.stable_diffusion import BaseModel
from trainer.preview.mixing import SWITCH_EVERY, Mixing
from trainer.preview.predictor import PartStrength, Predictor
from trainer.preview.samplers import KINDS, Sampler, scheduler_of
from trainer.preview.start import begin

__all__ = ["Cancelled", "PartStrength", "Picture", "render"]


class Cancelled(Exception):
    """The images were given up between two denoising steps."""


@dataclass(frozen=True)
class Picture:
    """What to draw; `request.Drawing` explains the fields."""

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    steps: int = 20
    guidance: float = 7.0
    width: int | None = None
    height: int | None = None
    sampler: Sampler = "ddim"
    clip_skip: int = 1
    mixing: Mixing = "sum"
    switch_every: int = SWITCH_EVERY
    initial_image: Path | None = None
    denoise: float = 0.75

    @property
    def guided(self) -> bool:
        """Whether there is classifier-free guidance (Ho & Salimans, 2022, arXiv:2207.12598): a
        prediction with the prompt and one without."""
        return self.guidance > 1


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
        UserError: if the initial image, a mask, or the prompt cannot be used.
    """
    scheduler = scheduler_of(picture.sampler, model.scheduler_config)
    start = begin(model, picture, scheduler)
    predictor = Predictor(model, picture, attachment, strengths or {}, strip, start.latents)
    latents = start.latents.expand(len(strip), -1, -1, -1)
    steps = len(start.timesteps)
    further_noise = {}
    if KINDS[picture.sampler].adds_noise:  # the same for all images of the strip
        further_noise["generator"] = [start.generator.clone_state() for _ in strip]
    for step, timestep in enumerate(start.timesteps):
        if cancelled():
            raise Cancelled
        inputs = scheduler.scale_model_input(latents, timestep)
        prediction = predictor.predict(inputs, timestep, step, steps)
        latents = scheduler.step(prediction, timestep, latents, **further_noise).prev_sample
        on_step(step + 1, steps)
    # One by one: decoding takes far more memory than denoising.
    return [to_image(model.decode_latents(one[None])[0]) for one in latents]
