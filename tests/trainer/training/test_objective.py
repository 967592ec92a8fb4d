"""What a pass of a step asks of the model: always the same, and drawn as the settings say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.data.batches import Batch
from trainer.fields import nest
from trainer.settings_file import parse
from trainer.training.objective import Objective, Question

ALPHAS = torch.linspace(0.999, 0.01, 1000)


def _objective(**changes: Any) -> Objective:
    model = SimpleNamespace(
        alphas_cumprod=ALPHAS, device=torch.device("cpu"), prediction_type="epsilon"
    )
    conditions = SimpleNamespace(chunks=lambda captions: 1)
    wanted = parse(nest({name.replace("__", "."): value for name, value in changes.items()}))
    return Objective(model, wanted, conditions)  # type: ignore[arg-type]


def _batch(images: int, side: int = 8) -> Batch:
    latents = torch.randn((images, 4, side, side), generator=torch.Generator().manual_seed(0))
    return Batch(latents, ("",) * images, (Path("a.png"),) * images)


def _seen_noise(question: Question, batch: Batch) -> Tensor:
    """The noise in what the model sees."""
    alpha_bar = question.alpha_bar[:, None, None, None]
    return (question.noisy - alpha_bar.sqrt() * batch.latents) / (1 - alpha_bar).sqrt()


EVERYTHING: dict[str, Any] = {
    "loss__noise_offset": 0.1, "loss__multires_noise": 0.3, "loss__input_perturbation": 0.2,
    "training__timesteps": "logit_normal",
}  # fmt: skip


def test_a_pass_is_a_function_of_seed_step_and_number() -> None:
    batch, places = _batch(3), [(0, 0), (0, 1), (1, 0)]
    one, other = _objective(**EVERYTHING), _objective(**EVERYTHING)
    asked = [one.ask(batch, step, micro).noisy for step, micro in places]
    again = [other.ask(batch, step, micro).noisy for step, micro in reversed(places)][::-1]
    assert all(map(torch.equal, asked, again))
    seeds = _objective(**EVERYTHING, training__seed=1).ask(batch, 0, 0).noisy
    different = [*asked, seeds]
    assert not any(torch.equal(a, b) for i, a in enumerate(different) for b in different[i + 1 :])


def test_without_perturbation_what_is_seen_is_what_is_wanted() -> None:
    batch = _batch(4)
    question = _objective().ask(batch, 3, 0)
    torch.testing.assert_close(_seen_noise(question, batch), question.wanted, rtol=1e-4, atol=1e-3)


def test_perturbation_is_noise_that_is_seen_but_not_wanted() -> None:
    # Ning et al., 2023, arXiv:2301.11706, algorithm 1: ε is wanted, given
    # √ᾱ x + √(1-ᾱ) (ε + γ ξ).
    batch = _batch(32, side=32)
    plain = _objective().ask(batch, 3, 0)
    question = _objective(loss__input_perturbation=0.2, training__min_timestep=500).ask(batch, 3, 0)
    assert torch.equal(question.wanted, plain.wanted)
    extra = _seen_noise(question, batch) - question.wanted
    assert float(extra.std()) == pytest.approx(0.2, rel=0.01)
    together = torch.stack([extra.flatten(), question.wanted.flatten()])
    assert float(torch.corrcoef(together)[0, 1]) == pytest.approx(0, abs=0.01)


def test_offset_noise_is_wanted_too_and_differs_by_image_and_channel() -> None:
    batch = _batch(512, side=4)
    plain = _objective().ask(batch, 3, 0).wanted
    shift = _objective(loss__noise_offset=0.1).ask(batch, 3, 0).wanted - plain
    assert float(shift.std((2, 3)).max()) < 1e-6  # one constant a channel
    assert float(shift.mean((2, 3)).std()) == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("how", ["uniform", "logit_normal", "low_discrepancy"])
def test_timesteps_stay_in_the_range_asked_for(how: str) -> None:
    objective = _objective(
        training__timesteps=how, training__min_timestep=200, training__max_timestep=219
    )
    batch = _batch(16)
    drawn = torch.cat([objective.ask(batch, step, 0).timesteps for step in range(40)])
    assert set(drawn.tolist()) <= set(range(200, 220))
    assert len(set(drawn.tolist())) >= 16  # the rest are rare where the middle is drawn more often


def test_low_discrepancy_is_even_across_images_passes_and_steps() -> None:
    objective, batch = _objective(training__gradient_accumulation=2), _batch(3)
    drawn = [
        objective.ask(batch, step, micro).timesteps for step in range(20) for micro in range(2)
    ]
    counts = torch.histc(torch.cat(drawn).float(), bins=10, min=0, max=1000)
    assert counts.min() >= 10 and counts.max() <= 14  # of 12 expected
    one_step = torch.cat(drawn[:2]).sort().values
    assert int(one_step.diff().min()) > 50  # six of a step are never close together
