"""What one batch should make the model learn: its noise, its timesteps, its loss."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from trainer.data.batches import Batch
from trainer.model.stable_diffusion import BaseModel, Conditioning
from trainer.randomness import generator
from trainer.settings import Settings
from trainer.training import loss as losses


@dataclass(frozen=True)
class Question:
    """A batch with everything random drawn: given `noisy` at `timesteps`, what is `wanted`?

    noisy and wanted are [B, C, h, w], timesteps and alpha_bar [B], all on the model's device.
    """

    noisy: Tensor
    wanted: Tensor
    timesteps: Tensor
    alpha_bar: Tensor
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Objective:
    """Turns batches into losses."""

    model: BaseModel
    wanted: Settings

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
        ).to(model.device)
        alpha_bar = model.alphas_cumprod[timesteps]
        latents, noise, seen = (x.to(model.device) for x in (batch.latents, noise, seen))
        return Question(
            noisy=losses.add_noise(latents, seen, alpha_bar),
            wanted=losses.target(latents, noise, alpha_bar, model.prediction_type),
            timesteps=timesteps,
            alpha_bar=alpha_bar,
            captions=batch.captions,
        )

    def losses(self, question: Question, images: slice) -> Tensor:
        """The weighted loss [b] of each of some images of a question."""
        loss, alpha_bar = self.wanted.loss, question.alpha_bar[images]
        prediction = self.model.predict(
            question.noisy[images],
            question.timesteps[images],
            self._read(question.captions[images]),
        )
        error = losses.error(prediction, question.wanted[images], loss.huber_delta)
        return error * losses.weight(
            loss.weighting, alpha_bar, self.model.prediction_type, loss.min_snr_gamma
        )

    @cached_property
    def _shift(self) -> int:
        """Where the run begins in the low-discrepancy sequence."""
        draws = generator(self.wanted.training.seed, "timesteps")
        return int(torch.randint(1_000_000, (), generator=draws))

    @cached_property
    def _remembered(self) -> dict[str, Conditioning]:
        return {}

    def _read(self, captions: tuple[str, ...]) -> Conditioning:
        """Captions as the text encoders see them; remembered while those are frozen."""
        if self.wanted.adapter.text_encoder:
            return self.model.encode_prompts(captions)
        for caption in captions:
            if caption not in self._remembered:
                with torch.no_grad():
                    self._remembered[caption] = self.model.encode_prompts([caption])
        return Conditioning.cat([self._remembered[caption] for caption in captions])
