"""Schedules against transformers' and the shape that their names promise."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from trainer.settings import Optimizer
from trainer.training import optimizers

STEPS = 40


def _rates(schedule: str, warmup: float) -> list[float]:
    wanted = Optimizer(schedule=schedule, warmup=warmup)  # type: ignore[arg-type]
    return [optimizers.rate_factor(wanted, step, STEPS) for step in range(STEPS)]


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)],
)
def test_decay_equals_transformers(schedule: str, theirs: object) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = theirs(optimizer, 4, STEPS)  # type: ignore[operator]
    expected = []
    for _ in range(STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    # Ours rises from above zero, so that the first step is not lost; after that they agree.
    assert _rates(schedule, 0.1)[4:] == pytest.approx(expected[4:])


def test_constant_after_the_warm_up() -> None:
    rates = _rates("constant", 0.1)
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert set(rates[4:]) == {1.0}


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_rates_are_positive_and_peak_at_one(schedule: str) -> None:
    for warmup in (0.0, 0.05, 0.5):
        rates = _rates(schedule, warmup)
        assert all(0 < rate <= 1 for rate in rates)
        assert max(rates) == 1.0


def test_groups_have_their_own_rates() -> None:
    wanted = Optimizer(learning_rate=1e-3, text_encoder_learning_rate=1e-4)
    unet, text = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))
    optimizer = optimizers.build(wanted, [unet], [text])
    assert optimizers.set_rates(optimizer, 0.5) == 5e-4
    assert [group["lr"] for group in optimizer.param_groups] == [5e-4, 5e-5]


def test_without_its_own_rate_the_text_encoder_has_the_unets() -> None:
    wanted = Optimizer(learning_rate=1e-3, text_encoder_learning_rate=None)
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))]
    optimizer = optimizers.build(wanted, parameters[:1], parameters[1:])
    assert [group["peak"] for group in optimizer.param_groups] == [1e-3, 1e-3]
    assert len(optimizers.build(wanted, parameters, []).param_groups) == 1
