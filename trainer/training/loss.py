"""Noise, targets and weights of diffusion training, as pure functions."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.model.stable_diffusion import PredictionType


def add_noise(latents: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """√ᾱ·x + √(1−ᾱ)·ε, the forward process (Ho et al., 2020, arXiv:2006.11239, eq. 4).

    latents and noise are [B, C, h, w], alpha_bar [B] in (0, 1).
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


def min_snr_weight(alpha_bar: Tensor, gamma: float, prediction_type: PredictionType) -> Tensor:
    """Weights [B] for the mean squared error: min(SNR, γ) in x₀-space, which is min(SNR, γ)/SNR for
    ε and min(SNR, γ)/(SNR + 1) for velocity (Hang et al., 2023, arXiv:2303.09556, §3.4)."""
    snr = signal_to_noise(alpha_bar)
    clamped = snr.clamp(max=gamma)
    return clamped / snr if prediction_type == "epsilon" else clamped / (snr + 1)


def offset_noise(noise: Tensor, offsets: Tensor, strength: float) -> Tensor:
    """Noise whose mean per image and channel varies too (Guttenberg, 2023, "Diffusion with offset
    noise"), so that very dark and very bright images can be learned. offsets is [B, C, 1, 1]."""
    return noise + strength * offsets


def squared_error(prediction: Tensor, wanted: Tensor) -> Tensor:
    """The mean squared error of each image [B], in fp32."""
    return torch.square(prediction.float() - wanted.float()).flatten(1).mean(1)
