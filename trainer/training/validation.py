"""The loss at fixed noise and timesteps: the same question asked again and again.

Training losses jump with every draw of noise and timestep. Here both are fixed for each image, so a
change is a change of the adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trainer.data.latents import Encoded
from trainer.model.stable_diffusion import BaseModel
from trainer.randomness import generator
from trainer.training import loss as losses

# Enough for a steady mean; more would cost time at every validation.
MOST_IMAGES = 16


@dataclass(frozen=True)
class Probe:
    """A fixed set of images to measure on; `purpose` names the stream of their noise."""

    purpose: str
    images: Sequence[Encoded]
    timesteps: int
    seed: int


@torch.no_grad()
def measure(model: BaseModel, probe: Probe) -> float:
    """The mean squared error over the probe's images and timesteps, unweighted.

    The timesteps are the midpoints of `timesteps` equal parts of the schedule.
    """
    total = len(model.alphas_cumprod)
    timesteps = torch.tensor(
        [round((part + 0.5) * total / probe.timesteps) for part in range(probe.timesteps)]
    )
    errors = []
    for index, image in enumerate(probe.images[:MOST_IMAGES]):
        noise = torch.randn(
            (probe.timesteps, *image.latents.shape),
            generator=generator(probe.seed, probe.purpose, index),
        )
        alpha_bar = model.alphas_cumprod[timesteps.to(model.device)]
        latents = image.latents.to(model.device).expand_as(noise)
        noise = noise.to(model.device)
        prediction = model.predict(
            losses.add_noise(latents, noise, alpha_bar),
            timesteps.to(model.device),
            model.encode_prompts([image.caption]).repeat(probe.timesteps),
        )
        wanted = losses.target(latents, noise, alpha_bar, model.prediction_type)
        errors.append(losses.error(prediction, wanted).mean())
    return float(torch.stack(errors).mean())
