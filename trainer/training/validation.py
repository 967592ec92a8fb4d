"""The loss at fixed noise and timesteps: the same question asked again and again.

Training losses jump with every draw of noise and timestep. Here both are fixed for each image, so a
change is a change of the adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainer.data.latents import Encoded
from trainer.model.stable_diffusion import BaseModel, Conditioning
from trainer.randomness import generator
from trainer.training import loss as losses
from trainer.training.conditions import Conditions

# Enough for a steady mean; more would cost time at every validation.
MOST_IMAGES = 16


@dataclass(frozen=True)
class Probe:
    """A fixed set of images to measure on. `purpose` names the stream of their noise; `at_once`
    is how many noise levels are done in one pass, as many as a training batch has images. Images
    and captions are as they are, neither augmented nor reworded. `latents`, [C, h, w] each, are of
    those images that are measured."""

    purpose: str
    images: Sequence[Encoded]
    timesteps: int
    seed: int
    at_once: int
    conditions: Conditions
    latents: Sequence[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        # Read at once, so that every measurement is of the same images even if one vanishes.
        measured = [image.latents for image in self.images[:MOST_IMAGES]]
        object.__setattr__(self, "latents", measured)


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
    for index, latents in enumerate(probe.latents):
        noise = torch.randn(
            (probe.timesteps, *latents.shape),
            generator=generator(probe.seed, probe.purpose, index),
        )
        conditioning = probe.conditions.read([probe.images[index].caption])
        for first in range(0, probe.timesteps, probe.at_once):
            part = slice(first, first + probe.at_once)
            errors.append(_errors(model, latents, noise[part], timesteps[part], conditioning))
    return float(torch.cat(errors).mean())


def _errors(
    model: BaseModel, latents: Tensor, noise: Tensor, timesteps: Tensor, conditioning: Conditioning
) -> Tensor:
    """The error of one image [C, h, w] at each timestep [T], with noise [T, C, h, w]."""
    noise, timesteps = noise.to(model.device), timesteps.to(model.device)
    latents = latents.to(model.device).expand_as(noise)
    alpha_bar = model.alphas_cumprod[timesteps]
    noisy = losses.add_noise(latents, noise, alpha_bar)
    prediction = model.predict(noisy, timesteps, conditioning.repeat(len(timesteps)))
    wanted = losses.target(latents, noise, alpha_bar, model.prediction_type)
    return losses.error(prediction, wanted)
