"""Optimizers are their libraries' own; schedules equal transformers' and their names."""

from __future__ import annotations

import importlib
import sys
from itertools import pairwise

import pytest
import torch
from torch import nn
from transformers import (
    get_cosine_schedule_with_warmup,
    get_cosine_with_hard_restarts_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from trainer.adapter.attach import Attachment, attach_new
from trainer.errors import UserError
from trainer.settings import Adapter, Optimizer
from trainer.training import optimizers

STEPS = 40
NAMES = ("adamw", "adamw8bit", "adafactor", "prodigy", "lion", "schedule_free")


@pytest.fixture
def attachment() -> Attachment:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_q, self.to_k = nn.Linear(6, 8), nn.Linear(6, 8)

    text = nn.ModuleDict({"self_attn": nn.ModuleDict({"q_proj": nn.Linear(4, 4)})})
    parts = {"unet": nn.ModuleDict({"x": nn.ModuleDict({"attn1": Attention()})}),
             "text_encoder": nn.ModuleDict({"layer": text})}  # fmt: skip
    return attach_new(parts, Adapter(rank=2, alpha=2), torch.Generator().manual_seed(0))


def _rates(schedule: str, warmup: float = 0.1) -> list[float]:
    wanted = Optimizer(schedule=schedule, warmup=warmup)  # type: ignore[arg-type]
    return [optimizers.rate_factor(wanted, step, STEPS) for step in range(STEPS)]


@pytest.mark.parametrize(
    ("schedule", "theirs", "options"),
    [
        ("linear", get_linear_schedule_with_warmup, {}),
        ("cosine", get_cosine_schedule_with_warmup, {}),
        (
            "cosine_restarts",
            get_cosine_with_hard_restarts_schedule_with_warmup,
            {"num_cycles": 3},
        ),
    ],
)
def test_decay_equals_transformers(schedule: str, theirs: object, options: dict[str, int]) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = theirs(optimizer, 4, STEPS, **options)  # type: ignore[operator]
    expected = []
    for _ in range(STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    # Ours rises from above zero, so that the first step is not lost; after that they agree.
    assert _rates(schedule)[4:] == pytest.approx(expected[4:])


def test_constant_and_polynomial() -> None:
    assert _rates("constant") == pytest.approx([0.2, 0.4, 0.6, 0.8] + [1.0] * 36)
    assert _rates("polynomial")[4:] == pytest.approx([(1 - k / 36) ** 2 for k in range(36)])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "polynomial"])
def test_rates_rise_to_one_and_never_again(schedule: str) -> None:
    for warmup in (0.0, 0.05, 0.5):
        rates = _rates(schedule, warmup)
        peak = rates.index(1.0)
        assert all(0 < rate <= 1 for rate in rates)
        assert all(one < other for one, other in pairwise(rates[: peak + 1]))
        assert all(one >= other for one, other in pairwise(rates[peak:]))


def test_a_schedule_free_optimizer_has_a_warm_up_and_no_schedule() -> None:
    wanted = Optimizer(name="schedule_free", warmup=0.1)
    rates = [optimizers.rate_factor(wanted, step, STEPS) for step in range(STEPS)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8] + [1.0] * 36)


def test_prodigy_at_another_optimizers_rate_is_told() -> None:
    (said,) = optimizers.notices(Optimizer(name="prodigy"))
    assert "which is 0.0001" in said
    assert not optimizers.notices(Optimizer(name="prodigy", learning_rate=1))
    assert not optimizers.notices(Optimizer())


def test_groups_and_their_rates(attachment: Attachment) -> None:
    wanted = Optimizer(learning_rate=1e-3, lora_plus_ratio=16)
    optimizer = optimizers.build(wanted, attachment)
    assert [group["peak"] for group in optimizer.param_groups] == [1e-3, 16e-3, 5e-4, 8e-3]
    assert optimizers.set_rates(optimizer, 0.5) == 5e-4
    assert optimizer.param_groups[1]["lr"] == 8e-3
    counted = sum(len(group["params"]) for group in optimizer.param_groups)
    assert counted == 2 * len(attachment.layers)
    ups = {id(layer.up) for layer in attachment.layers.values()}
    fast = {id(p) for group in optimizer.param_groups[1::2] for p in group["params"]}
    assert fast == ups


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_goes_downhill(attachment: Attachment, name: str) -> None:
    rate = 1.0 if name == "prodigy" else 1e-2
    wanted = Optimizer(name=name, learning_rate=rate, weight_decay=0)  # type: ignore[arg-type]
    optimizer = optimizers.build(wanted, attachment)
    if hasattr(optimizer, "train"):
        optimizer.train()
    layers = list(attachment.layers.values())

    def distance() -> torch.Tensor:
        return sum((layer.up - 1).square().mean() for layer in layers)  # type: ignore[return-value]

    before = distance().item()
    for _ in range(200):
        distance().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert distance().item() < 0.9 * before


def test_a_step_that_the_device_leaves_out_leaves_nothing_behind(attachment: Attachment) -> None:
    optimizer = optimizers.build(Optimizer(), attachment)
    assert optimizers.can_step_if(optimizer)
    layers = list(attachment.layers.values())
    factors = [factor for layer in layers for factor in (layer.down, layer.up)]

    def step(finite: bool, gradient: float) -> list[torch.Tensor]:
        for factor in factors:
            factor.grad = torch.full_like(factor, gradient)
        optimizers.step_if(torch.tensor(finite), optimizer)
        return [tensor.clone() for tensor in (*factors, *_moments(optimizer))]

    first = step(True, 0.5)
    assert all(map(torch.equal, first, step(False, float("nan"))))
    assert not any(map(torch.equal, first, step(True, 0.25)))


def _moments(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [value for state in optimizer.state.values() for value in state.values()]


def test_prodigy_refuses_several_rates(attachment: Attachment) -> None:
    with pytest.raises(UserError, match="one rate"):
        optimizers.build(Optimizer(name="prodigy", text_encoder_learning_rate=0.1), attachment)


@pytest.mark.parametrize("package", ["prodigyopt", "lion_pytorch", "schedulefree", "bitsandbytes"])
def test_a_missing_library_is_named(
    attachment: Attachment, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    name = {"prodigyopt": "prodigy", "lion_pytorch": "lion", "schedulefree": "schedule_free",
            "bitsandbytes": "adamw8bit"}[package]  # fmt: skip
    real = importlib.import_module

    def missing(module: str) -> object:
        if module.startswith(package):
            raise ImportError(module)
        return real(module)

    monkeypatch.setattr(importlib, "import_module", missing)
    monkeypatch.delitem(sys.modules, package, raising=False)
    with pytest.raises(UserError, match=f"pip install {package.replace('_', '-')}"):
        optimizers.build(Optimizer(name=name), attachment)  # type: ignore[arg-type]
