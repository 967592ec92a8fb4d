"""What one batch should make the model learn: its noise, its timesteps, its loss."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from trainer.data.batches import Batch
from trainer.model.stable_diffusion import BaseModel
from trainer.randomness import generator
from trainer.settings import Settings
from trainer.training import loss as losses
from trainer.training.conditions import Conditions


@dataclass(frozen=True)
class Question:
    """A batch with everything random drawn: given `noisy` at `timesteps`, what is `wanted`?

    noisy and wanted are [B, C, h, w], timesteps and alpha_bar [B], and counts, what each place
    counts, [B, h, w], all on the model's device. All captions are read in as many chunks.
    """

    noisy: Tensor
    wanted: Tensor
    timesteps: Tensor
    alpha_bar: Tensor
    captions: tuple[str, ...]
    chunks: int = 1
    counts: Tensor | None = None


@dataclass(frozen=True)
class Objective:
    """Turns batches into losses."""

    model: BaseModel
    wanted: Settings
    conditions: Conditions

    def ask(self, batch: Batch, step: int, micro: int) -> Question:
        """Draws noise and timesteps for pass `micro` of step `step`: always the same."""
        model, loss, training = self.model, self.wanted.loss, self.wanted.training
        draws = generator(training.seed, "noise", step, micro)
        noise = torch.randn(batch.latents.shape, generator=draws)
        if loss.noise_offset is not None:
            noise = losses.offset_noise(noise, loss.noise_offset, draws)
        if loss.multires_noise is not None:
            noise = losses.multires_noise(noise, loss.multires_noise, draws)
        seen = noise
        if loss.input_perturbation is not None:
            seen = noise + loss.input_perturbation * torch.randn(noise.shape, generator=draws)
        count = len(batch.latents)
        timesteps = losses.timesteps(
            training.timesteps,
            count,
            training.min_timestep,
            min(training.max_timestep, len(model.alphas_cumprod) - 1),
            self._shift + (step * training.gradient_accumulation + micro) * count,
            draws,
        )
        latents, noise, seen, timesteps = (
            _queued(x, model.device) for x in (batch.latents, noise, seen, timesteps)
        )
        alpha_bar = model.alphas_cumprod[timesteps]
        return Question(
            noisy=losses.add_noise(latents, seen, alpha_bar),
            wanted=losses.target(latents, noise, alpha_bar, model.prediction_type),
            timesteps=timesteps,
            alpha_bar=alpha_bar,
            captions=batch.captions,
            chunks=self.conditions.chunks(batch.captions),
            counts=self._counts(batch),
        )

    def losses(self, question: Question, images: slice) -> Tensor:
        """The weighted loss [b] of each of some images of a question."""
        loss, alpha_bar = self.wanted.loss, question.alpha_bar[images]
        prediction = self.model.predict(
            question.noisy[images],
            question.timesteps[images],
            self.conditions.read_to_learn(question.captions[images], question.chunks),
        )
        counts = None if question.counts is None else question.counts[images]
        error = losses.error(prediction, question.wanted[images], loss.huber_delta, counts)
        return error * losses.weight(
            loss.weighting, alpha_bar, self.model.prediction_type, loss.min_snr_gamma
        )

    def _counts(self, batch: Batch) -> Tensor | None:
        """What each latent counts by its mask, of which black counts a little."""
        if batch.mask is None:
            return None
        floor = self.wanted.loss.mask_floor
        return (floor + (1 - floor) * batch.mask).to(self.model.device)

    @cached_property
    def _shift(self) -> int:
        """Where the run begins in the low-discrepancy sequence."""
        draws = generator(self.wanted.training.seed, "timesteps")
        return int(torch.randint(1_000_000, (), generator=draws))


def _queued(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device, without waiting for what the device still has to do."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
