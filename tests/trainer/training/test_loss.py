"""The formulas of diffusion training against diffusers' schedulers and the papers' definitions."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor

from trainer.training import loss


@pytest.fixture
def scheduler() -> DDPMScheduler:
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


@pytest.fixture
def drawn() -> tuple[Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    latents, noise = torch.randn((2, 5, 4, 8, 8), generator=draws)
    return latents, noise, torch.tensor([0, 10, 400, 900, 999])


def test_noise_and_targets_equal_diffusers(
    scheduler: DDPMScheduler, drawn: tuple[Tensor, Tensor, Tensor]
) -> None:
    latents, noise, timesteps = drawn
    alpha_bar = scheduler.alphas_cumprod[timesteps]
    noisy = loss.add_noise(latents, noise, alpha_bar)
    torch.testing.assert_close(noisy, scheduler.add_noise(latents, noise, timesteps))
    assert loss.target(latents, noise, alpha_bar, "epsilon") is noise
    velocity = loss.target(latents, noise, alpha_bar, "v_prediction")
    torch.testing.assert_close(velocity, scheduler.get_velocity(latents, noise, timesteps))


def test_min_snr_weights_equal_their_definition(
    scheduler: DDPMScheduler, drawn: tuple[Tensor, Tensor, Tensor]
) -> None:
    _, _, timesteps = drawn
    snr = compute_snr(scheduler, timesteps)
    alpha_bar = scheduler.alphas_cumprod[timesteps]
    torch.testing.assert_close(loss.signal_to_noise(alpha_bar), snr)
    clamped = torch.minimum(snr, torch.tensor(5.0))
    close = {"rtol": 1e-5, "atol": 1e-7}
    epsilon = loss.min_snr_weight(alpha_bar, 5.0, "epsilon")
    velocity = loss.min_snr_weight(alpha_bar, 5.0, "v_prediction")
    torch.testing.assert_close(epsilon, clamped / snr, **close)
    torch.testing.assert_close(velocity, clamped / (snr + 1), **close)


def test_both_weightings_are_one_loss_in_x0_space(
    scheduler: DDPMScheduler, drawn: tuple[Tensor, Tensor, Tensor]
) -> None:
    # A prediction of x0 that is off by d has an ε error of d·√SNR and a v error of d·√(SNR + 1).
    alpha_bar = scheduler.alphas_cumprod[drawn[2]]
    snr = loss.signal_to_noise(alpha_bar)
    by_epsilon = loss.min_snr_weight(alpha_bar, 5.0, "epsilon") * snr
    by_velocity = loss.min_snr_weight(alpha_bar, 5.0, "v_prediction") * (snr + 1)
    torch.testing.assert_close(by_epsilon, by_velocity)
    torch.testing.assert_close(by_epsilon, snr.clamp(max=5.0))


def test_offset_noise_shifts_each_channel_alone() -> None:
    noise, offsets = torch.zeros(2, 4, 8, 8), torch.randn(2, 4, 1, 1)
    shifted = loss.offset_noise(noise, offsets, 0.1)
    torch.testing.assert_close(shifted.mean((2, 3), keepdim=True), 0.1 * offsets)
    assert shifted.std((2, 3)).max() < 1e-6


def test_squared_error_is_per_image_and_in_fp32() -> None:
    prediction = torch.tensor([[[[1.0, 3.0]]], [[[0.0, 0.0]]]], dtype=torch.float16)
    errors = loss.squared_error(prediction, torch.zeros(2, 1, 1, 2))
    assert errors.dtype is torch.float32
    assert errors.tolist() == [5.0, 0.0]
