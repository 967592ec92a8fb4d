"""The formulas of diffusion training against diffusers' schedulers and the papers' definitions."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainer.settings import Timesteps, Weighting
from trainer.training import loss

WEIGHTINGS: tuple[Weighting, ...] = ("uniform", "min_snr", "debiased", "p2")
KINDS: tuple[Timesteps, ...] = ("uniform", "logit_normal", "low_discrepancy")


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


def test_weights_equal_their_definitions(
    scheduler: DDPMScheduler, drawn: tuple[Tensor, Tensor, Tensor]
) -> None:
    timesteps = drawn[2]
    snr = compute_snr(scheduler, timesteps)
    alpha_bar = scheduler.alphas_cumprod[timesteps]
    torch.testing.assert_close(loss.signal_to_noise(alpha_bar), snr)
    expected = {
        "uniform": torch.ones(5),
        "min_snr": torch.minimum(snr, torch.tensor(5.0)) / snr,
        "debiased": 1 / torch.sqrt(snr),
        "p2": 1 / (1 + snr),
    }
    for weighting in WEIGHTINGS:
        weights = loss.weight(weighting, alpha_bar, "epsilon", 5.0)
        torch.testing.assert_close(weights, expected[weighting], rtol=1e-5, atol=1e-7)
    velocity = loss.weight("min_snr", alpha_bar, "v_prediction", 5.0)
    torch.testing.assert_close(velocity, torch.minimum(snr, torch.tensor(5.0)) / (snr + 1))


@pytest.mark.parametrize("weighting", ["min_snr", "debiased", "p2"])
def test_a_weighting_is_one_loss_whatever_is_predicted(
    scheduler: DDPMScheduler, drawn: tuple[Tensor, Tensor, Tensor], weighting: Weighting
) -> None:
    # One error of x₀, seen as an error of ε and as an error of v.
    latents, noise, timesteps = drawn
    alpha_bar = scheduler.alphas_cumprod[timesteps]
    a, s = (x.sqrt()[:, None, None, None] for x in (alpha_bar, 1 - alpha_bar))
    noisy = loss.add_noise(latents, noise, alpha_bar)
    guess = latents + 0.1 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    guessed_noise = (noisy - a * guess) / s
    seen = {"epsilon": guessed_noise, "v_prediction": a * guessed_noise - s * guess}
    losses = [
        loss.error(prediction, loss.target(latents, noise, alpha_bar, kind))  # type: ignore[arg-type]
        * loss.weight(weighting, alpha_bar, kind, 5.0)  # type: ignore[arg-type]
        for kind, prediction in seen.items()
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=1e-6)


def test_the_error_is_per_image_and_in_fp32() -> None:
    prediction = torch.tensor([[[[1.0, 3.0]]], [[[0.0, 0.0]]]], dtype=torch.float16)
    errors = loss.error(prediction, torch.zeros(2, 1, 1, 2))
    assert errors.dtype is torch.float32
    assert errors.tolist() == [5.0, 0.0]


@given(st.floats(0.01, 10), st.floats(-5, 5))
def test_huber_equals_its_definition(delta: float, difference: float) -> None:
    one, zero = torch.full((1, 1, 1, 1), difference), torch.zeros(1, 1, 1, 1)
    expected = 2 * delta * ((difference**2 + delta**2) ** 0.5 - delta)
    assert float(loss.error(one, zero, delta)) == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_huber_is_squared_near_zero_and_linear_far_away() -> None:
    small, large = torch.full((1, 1, 1, 1), 1e-3), torch.full((1, 1, 1, 1), 100.0)
    zero = torch.zeros(1, 1, 1, 1)
    assert float(loss.error(small, zero, 0.1)) == pytest.approx(1e-6, rel=1e-2)
    assert float(loss.error(large, zero, 0.1)) == pytest.approx(2 * 0.1 * 100, rel=1e-2)


def test_offset_noise_shifts_each_channel_alone() -> None:
    shifted = loss.offset_noise(torch.zeros(2, 4, 8, 8), 0.1, torch.Generator().manual_seed(0))
    assert shifted.std((2, 3)).max() < 1e-6
    assert shifted.mean((2, 3)).std() == pytest.approx(0.1, rel=0.5)


def test_multires_noise_has_unit_variance_and_a_coarse_part() -> None:
    draws = torch.Generator().manual_seed(0)
    noise = torch.randn((256, 4, 16, 16), generator=draws)
    richer = loss.multires_noise(noise, 0.8, draws)
    assert float(richer.std()) == pytest.approx(1, abs=0.02)
    # Means over the image vary far more than those of white noise, which is 1/16.
    assert float(richer.mean((2, 3)).std()) > 2 * float(noise.mean((2, 3)).std())


def test_multires_noise_is_a_pyramid() -> None:
    noise = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    draws = torch.Generator().manual_seed(1)
    expected, squares = noise.clone(), 1.0
    for octave, side in enumerate((4, 2, 1), start=1):
        coarse = torch.randn((2, 4, side, side), generator=draws)
        expected += 0.3**octave * coarse.repeat_interleave(8 // side, 2).repeat_interleave(
            8 // side, 3
        )
        squares += 0.3 ** (2 * octave)
    richer = loss.multires_noise(noise, 0.3, torch.Generator().manual_seed(1))
    torch.testing.assert_close(richer, expected / squares**0.5)


@given(
    st.sampled_from(KINDS), st.integers(1, 64), st.integers(0, 999), st.integers(0, 999),
    st.integers(0, 10**8),
)  # fmt: skip
def test_timesteps_stay_in_their_range(
    how: Timesteps, count: int, one: int, other: int, first: int
) -> None:
    lowest, highest = sorted((one, other))
    drawn = loss.timesteps(how, count, lowest, highest, first, torch.Generator().manual_seed(0))
    assert drawn.shape == (count,)
    assert lowest <= int(drawn.min()) and int(drawn.max()) <= highest


def test_timesteps_have_the_distribution_they_are_named_for() -> None:
    draws = torch.Generator().manual_seed(0)
    uniform = loss.timesteps("uniform", 20_000, 0, 999, 0, draws).float()
    assert float(uniform.mean()) == pytest.approx(500, abs=10)
    assert float(uniform.std()) == pytest.approx(1000 / 12**0.5, abs=10)
    middle = loss.timesteps("logit_normal", 20_000, 0, 999, 0, draws).float()
    for place in (0.1, 0.25, 0.5, 0.75, 0.9):
        below = float(
            torch.special.ndtr(torch.tensor(place).logit())
        )  # P(sigmoid(N(0, 1)) < place)
        assert float((middle < 1000 * place).float().mean()) == pytest.approx(below, abs=0.02)


def test_low_discrepancy_fills_the_range_evenly_across_steps() -> None:
    draws = torch.Generator()
    steps = [loss.timesteps("low_discrepancy", 2, 0, 999, 2 * k, draws) for k in range(50)]
    counts = torch.histc(torch.cat(steps).float(), bins=10, min=0, max=1000)
    assert counts.min() >= 9 and counts.max() <= 11  # of 10 expected


def test_a_timestep_without_signal_has_a_finite_weight_for_velocity() -> None:
    # Zero-terminal-SNR bases (Lin et al., 2023, arXiv:2305.08891) train on ᾱ = 0.
    for weighting in WEIGHTINGS:
        weights = loss.weight(weighting, torch.tensor([0.0]), "v_prediction", 5.0)
        assert torch.isfinite(weights).all()


def test_a_mask_of_ones_is_no_mask_to_the_bit(drawn: tuple[Tensor, Tensor, Tensor]) -> None:
    one, other, _ = drawn
    for delta in (None, 0.1):
        assert torch.equal(
            loss.error(one, other, delta, torch.ones(5, 8, 8)), loss.error(one, other, delta)
        )


def test_only_what_counts_is_in_the_mean(drawn: tuple[Tensor, Tensor, Tensor]) -> None:
    one, other, _ = drawn
    counts = torch.zeros(5, 8, 8)
    counts[:, 2:5, 1:7] = 1
    inside = loss.error(one[:, :, 2:5, 1:7], other[:, :, 2:5, 1:7])
    torch.testing.assert_close(loss.error(one, other, None, counts), inside)
    torch.testing.assert_close(loss.error(one, other, None, counts / 4), inside)
    changed = torch.where(counts[:, None] == 0, one + 100, one)
    assert torch.equal(
        loss.error(changed, other, None, counts), loss.error(one, other, None, counts)
    )


def test_an_image_of_which_nothing_counts_has_no_error(
    drawn: tuple[Tensor, Tensor, Tensor],
) -> None:
    assert not loss.error(drawn[0], drawn[1], None, torch.zeros(5, 8, 8)).any()
