"""Noise, targets, errors and weights of diffusion training, as pure functions.

Throughout, alpha_bar is ᾱ of each image's timestep, [B] in (0, 1), and SNR = ᾱ / (1 − ᾱ).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.model.stable_diffusion import PredictionType
from trainer.settings import Timesteps, Weighting

# The fraction of the golden ratio: its multiples fill the unit interval most evenly.
_GOLDEN = 0.6180339887498949
_P2_GAMMA = 1.0
_FAINT = 1e-6  # below what one latent of a large image counts


def add_noise(latents: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """√ᾱ·x + √(1−ᾱ)·ε, the forward process (Ho et al., 2020, arXiv:2006.11239, eq. 4).

    latents and noise are [B, C, h, w].
    """
    alpha_bar = alpha_bar[:, None, None, None]
    return alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise


def target(
    latents: Tensor, noise: Tensor, alpha_bar: Tensor, prediction_type: PredictionType
) -> Tensor:
    """What the UNet should predict: ε, or the velocity √ᾱ·ε − √(1−ᾱ)·x
    (Salimans & Ho, 2022, arXiv:2202.00512, appendix D)."""
    if prediction_type == "epsilon":
        return noise
    alpha_bar = alpha_bar[:, None, None, None]
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * latents


def signal_to_noise(alpha_bar: Tensor) -> Tensor:
    """ᾱ / (1 − ᾱ)."""
    return alpha_bar / (1 - alpha_bar)


def weight(
    weighting: Weighting, alpha_bar: Tensor, prediction_type: PredictionType, gamma: float
) -> Tensor:
    """What each image's error counts, [B].

    The papers weigh the error of ε: min(SNR, γ) / SNR (min-SNR), 1 / √SNR (debiased),
    1 / (1 + SNR) (P2 with k = γ = 1). The same error seen as velocity is SNR / (SNR + 1) of that,
    since both measure the error of x₀. `uniform` counts the error of whatever is predicted.
    """
    snr = signal_to_noise(alpha_bar)
    # What the error of x₀ counts. Divided by SNR or SNR + 1 last, so that a timestep without any
    # signal, as in zero-terminal-SNR bases, has a finite weight where it has one.
    match weighting:
        case "uniform":
            return torch.ones_like(snr)
        case "min_snr":
            weights = snr.clamp(max=gamma)
        case "debiased":
            weights = snr.sqrt()
        case "p2":
            weights = snr * torch.pow(1 + snr, -_P2_GAMMA)
    return weights / (snr if prediction_type == "epsilon" else snr + 1)


def error(
    prediction: Tensor,
    wanted: Tensor,
    huber_delta: float | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """The mean error of each image [B], in fp32: squared, or pseudo-Huber with δ,
    2δ(√(d² + δ²) − δ) (Khrapov et al., 2024, arXiv:2403.16728, eq. 5), which is d² near zero.

    `counts` [B, h, w], from 0 to 1, is what each place counts in the mean; all ones are as none. An
    image of which nothing counts has no error.
    """
    squared = torch.square(prediction.float() - wanted.float())
    if huber_delta is not None:
        # The formula without the difference of two almost equal numbers.
        squared = 2 * huber_delta * squared / (torch.sqrt(squared + huber_delta**2) + huber_delta)
    if counts is None:
        return squared.flatten(1).mean(1)
    weighed = (squared * counts[:, None]).flatten(1).mean(1)
    return weighed / counts.flatten(1).mean(1).clamp(min=_FAINT)


def offset_noise(noise: Tensor, strength: float, draws: torch.Generator) -> Tensor:
    """Noise whose mean per image and channel varies too (Guttenberg, 2023, "Diffusion with offset
    noise"), so that very dark and very bright images can be learned."""
    offsets = torch.randn((*noise.shape[:2], 1, 1), generator=draws)
    return noise + strength * offsets


def multires_noise(noise: Tensor, discount: float, draws: torch.Generator) -> Tensor:
    """Noise with coarser noise on top, each octave `discount` times the one before, of unit
    variance in all (Whitaker, 2023, "Multi-resolution noise for diffusion model training")."""
    height, width = noise.shape[-2:]
    total, variance, strength = noise, 1.0, discount
    while min(height, width) > 1:
        height, width = max(1, height // 2), max(1, width // 2)
        coarse = torch.randn((*noise.shape[:2], height, width), generator=draws)
        total = total + strength * F.interpolate(coarse, noise.shape[-2:], mode="nearest")
        variance += strength**2
        strength *= discount
    return total / math.sqrt(variance)


def timesteps(
    how: Timesteps, count: int, lowest: int, highest: int, first: int, draws: torch.Generator
) -> Tensor:
    """Timesteps [count] in lowest … highest.

    `uniform` draws each alone; `logit_normal` takes the sigmoid of a normal (Esser et al., 2024,
    arXiv:2403.03206, §3.1); `low_discrepancy` is the additive recurrence with the golden ratio, in
    which image number `first` + i of the whole run has its place, so that batches and steps fill
    the range evenly. Its start is for the caller to shift, by `first`.
    """
    match how:
        case "uniform":
            places = torch.rand(count, generator=draws, dtype=torch.float64)
        case "logit_normal":
            places = torch.randn(count, generator=draws, dtype=torch.float64).sigmoid()
        case "low_discrepancy":
            numbers = torch.arange(first, first + count, dtype=torch.float64)
            places = (0.5 + numbers * _GOLDEN) % 1
    return (lowest + (places * (highest - lowest + 1)).long()).clamp(max=highest)
