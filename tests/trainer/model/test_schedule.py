"""Zero terminal SNR (arXiv:2305.08891), where a base asks for it or the user does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline

from tests.images import apart, drawn_by
from tests.trainer.training.runs import new_run, tensors
from trainer.errors import BaseModelError
from trainer.model.load import load
from trainer.preview.render import Picture, render
from trainer.run import State
from trainer.settings import Base
from trainer.training import loss
from trainer.training.attempt import attempt

PICTURE = Picture("a cat", "blurry", seed=3, steps=4, guidance=5.0, width=64, height=64)


@pytest.fixture(scope="module")
def rescaled(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose own configuration asks for it."""
    folder = tmp_path_factory.mktemp("rescaled") / "base"
    shutil.copytree(small_base, folder)
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rescale_betas_zero_snr": True}))
    return folder


def test_the_last_timestep_is_pure_noise_as_in_diffusers(rescaled: Path, small_base: Path) -> None:
    model = load(Base(model=str(rescaled), device="cpu"))
    expected = DDPMScheduler.from_pretrained(rescaled, subfolder="scheduler").alphas_cumprod
    torch.testing.assert_close(model.alphas_cumprod, expected)
    assert model.alphas_cumprod[-1] == 0
    asked = load(Base(model=str(small_base), zero_terminal_snr=True, device="cpu"))
    assert torch.equal(asked.alphas_cumprod, model.alphas_cumprod)
    refused = load(Base(model=str(rescaled), zero_terminal_snr=False, device="cpu"))
    assert refused.alphas_cumprod[-1] > 1e-3


def test_it_is_drawn_as_in_diffusers_from_the_last_timestep(rescaled: Path) -> None:
    model = load(Base(model=str(rescaled), device="cpu"))
    pipeline = StableDiffusionPipeline.from_pretrained(rescaled)
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing"
    )
    pipeline.scheduler.set_timesteps(PICTURE.steps)
    assert pipeline.scheduler.timesteps[0] == 999
    assert apart(render(model, PICTURE)[0], drawn_by(pipeline, PICTURE)) <= 1


@pytest.mark.parametrize("weighting", ["uniform", "min_snr", "debiased", "p2"])
def test_every_weight_is_finite_where_the_signal_is_zero(rescaled: Path, weighting: str) -> None:
    model = load(Base(model=str(rescaled), device="cpu"))
    weights = loss.weight(weighting, model.alphas_cumprod, model.prediction_type, 5.0)  # type: ignore[arg-type]
    assert torch.isfinite(weights).all()
    assert (weights >= 0).all()


def test_it_trains_on_pure_noise(rescaled: Path, photos: Path, tmp_path: Path) -> None:
    run = new_run(
        tmp_path / "run", rescaled, photos, training__steps=3, training__min_timestep=999,
        validation__every_steps=3, validation__timesteps=64, loss__weighting="uniform",
    )  # fmt: skip
    assert attempt(run) is State.FINISHED
    assert all(torch.isfinite(tensor).all() for tensor in tensors(run).values())
    assert any(t.abs().max() > 0 for key, t in tensors(run).items() if "lora_up" in key)


def test_epsilon_cannot_be_predicted_without_a_signal(rescaled: Path) -> None:
    with pytest.raises(BaseModelError, match=r"base\.zero_terminal_snr off"):
        load(Base(model=str(rescaled), prediction_type="epsilon", device="cpu"))
