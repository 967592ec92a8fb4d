"""The training loop: batch, loss, step; then whatever is due or has been asked for.

Step k draws all its randomness from (seed, k), so a run that was stopped or killed goes on from its
newest checkpoint as if nothing had happened.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from trainer.data.batches import Batch
from trainer.model.stable_diffusion import Conditioning
from trainer.randomness import generator
from trainer.run import Run
from trainer.settings import Settings
from trainer.training import loss as losses
from trainer.training import optimizers
from trainer.training.artifacts import Artifacts
from trainer.training.prepare import Prepared
from trainer.training.reporter import Reporter


@dataclass
class Loop:
    """One attempt at a run, from the step at which it starts to its end or a stop."""

    run: Run
    wanted: Settings
    prepared: Prepared
    reporter: Reporter
    artifacts: Artifacts
    _encoded: dict[str, Conditioning] = field(default_factory=dict)

    def train(self, start: int) -> bool:
        """Does the steps from `start` on; True when all are done, False when asked to stop."""
        if start == 0:
            self.artifacts.validate(0)
        self.reporter.begin(start)
        for step in range(start, self.steps):
            loss = self.step(step)
            done = step + 1
            self.reporter.step(done, loss, self.prepared.optimizer.param_groups[0]["lr"])
            stop = done < self.steps and self.run.take("stop")
            if stop:
                self.reporter.stopping(done)
            self._do_what_is_due(done, stop)
            if stop:
                return False
        return True

    def step(self, step: int) -> Tensor:
        """One optimizer step; returns the mean loss of its images, still on the device."""
        prepared = self.prepared
        optimizers.set_rates(
            prepared.optimizer, optimizers.rate_factor(self.wanted.optimizer, step, self.steps)
        )
        passes = self.wanted.training.gradient_accumulation
        total = torch.zeros((), device=prepared.model.device)
        for micro in range(passes):
            loss = self.loss(prepared.batches.batch(step, micro), step, micro) / passes
            prepared.accelerator.backward(loss)
            total += loss.detach()
        if self.wanted.optimizer.max_gradient_norm is not None:
            prepared.accelerator.clip_grad_norm_(
                self._factors, self.wanted.optimizer.max_gradient_norm
            )
        prepared.optimizer.step()
        prepared.optimizer.zero_grad()
        return total

    def loss(self, batch: Batch, step: int, micro: int) -> Tensor:
        """The weighted loss of one batch."""
        model, settings = self.prepared.model, self.wanted.loss
        draws = generator(self.wanted.training.seed, "noise", step, micro)
        noise = torch.randn(batch.latents.shape, generator=draws)
        if settings.noise_offset is not None:
            offsets = torch.randn((*batch.latents.shape[:2], 1, 1), generator=draws)
            noise = losses.offset_noise(noise, offsets, settings.noise_offset)
        timesteps = stratified(len(batch.latents), len(model.alphas_cumprod), draws)
        latents, noise = batch.latents.to(model.device), noise.to(model.device)
        timesteps = timesteps.to(model.device)
        alpha_bar = model.alphas_cumprod[timesteps]
        prediction = model.predict(
            losses.add_noise(latents, noise, alpha_bar), timesteps, self._encode(batch.captions)
        )
        wanted = losses.target(latents, noise, alpha_bar, model.prediction_type)
        error = losses.squared_error(prediction, wanted)
        if settings.min_snr_gamma is not None:
            gamma = settings.min_snr_gamma
            error = error * losses.min_snr_weight(alpha_bar, gamma, model.prediction_type)
        return error.mean()

    @property
    def steps(self) -> int:
        return self.wanted.training.steps

    @cached_property
    def _factors(self) -> list[Tensor]:
        return [p for group in self.prepared.optimizer.param_groups for p in group["params"]]

    def _encode(self, captions: tuple[str, ...]) -> Conditioning:
        """Captions as the text encoders see them; remembered while those are frozen."""
        model = self.prepared.model
        if self.wanted.adapter.text_encoder:
            return model.encode_prompts(captions)
        for caption in captions:
            if caption not in self._encoded:
                with torch.no_grad():
                    self._encoded[caption] = model.encode_prompts([caption])
        return Conditioning.cat([self._encoded[caption] for caption in captions])

    def _do_what_is_due(self, done: int, stop: bool) -> None:
        wanted, last = self.wanted, done == self.steps
        if done % wanted.validation.every_steps == 0 or last:
            self.artifacts.validate(done)
        if (
            self.run.take("save")
            or done % wanted.training.checkpoint_every_steps == 0
            or last
            or stop
        ):
            self.artifacts.checkpoint(done)
        samples_due = done % wanted.samples.every_steps == 0 or last
        if self.run.take("sample") or (samples_due and not stop):
            self.artifacts.sample(done)


def stratified(count: int, total: int, draws: torch.Generator) -> Tensor:
    """`count` timesteps in 0 … total - 1, one from each of `count` equal parts, in random order.

    As uniform as independent draws, with less noise in the gradient of a small batch
    (Kingma et al., 2021, "Variational Diffusion Models", arXiv:2107.00630, appendix I.1).
    """
    shift = torch.rand((), generator=draws)
    places = (torch.arange(count) / count + shift) % 1
    order = torch.randperm(count, generator=draws)
    return (places[order] * total).long().clamp(max=total - 1)
