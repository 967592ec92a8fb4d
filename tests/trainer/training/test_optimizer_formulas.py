"""Each optimizer does what its paper says: our steps against the papers' formulas, written anew.

All start from the same factors and see the same gradients, under a rate that rises and falls as a
run's does. The formulas are in double precision, and so are the factors, but for those of the 8-bit
optimizer, which is what it stands for up to the precision of its moments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.adapter.attach import Attachment, attach_new
from trainer.settings import Adapter, Optimizer
from trainer.training import factors, optimizers

DECAY = 0.1
FACTORS = (0.25, 0.5, 0.75, 1.0, 1.0, 0.9, 0.7, 0.4)  # of the peak rate, step by step
WIDTH = 2500  # so that a down matrix is large enough to have moments of 8 bits

Tensors = dict[str, Tensor]
Step = Callable[[Tensors, Mapping[str, Tensor], float], Tensors]


def adamw() -> Step:
    """Loshchilov & Hutter, 2017, arXiv:1711.05101, algorithm 2."""
    m: Tensors = {}
    v: Tensors = {}
    t = 0

    def step(x: Tensors, gradients: Mapping[str, Tensor], rate: float) -> Tensors:
        nonlocal t
        t += 1
        new = {}
        for name, g in gradients.items():
            m[name] = 0.9 * m.get(name, 0 * g) + 0.1 * g
            v[name] = 0.999 * v.get(name, 0 * g) + 0.001 * g**2
            m_hat, v_hat = m[name] / (1 - 0.9**t), v[name] / (1 - 0.999**t)
            new[name] = x[name] - rate * (m_hat / (v_hat.sqrt() + 1e-8) + DECAY * x[name])
        return new

    return step


def lion() -> Step:
    """Chen et al., 2023, arXiv:2302.06675, algorithm 2."""
    m: Tensors = {}

    def step(x: Tensors, gradients: Mapping[str, Tensor], rate: float) -> Tensors:
        new = {}
        for name, g in gradients.items():
            before = m.get(name, 0 * g)
            update = (0.9 * before + 0.1 * g).sign()
            new[name] = x[name] - rate * (update + DECAY * x[name])
            m[name] = 0.99 * before + 0.01 * g
        return new

    return step


def adafactor() -> Step:
    """Shazeer & Stern, 2018, arXiv:1804.04235, algorithm 4 with the settings of algorithm 5, at a
    given rate, and with decay as in AdamW."""
    rows: Tensors = {}
    columns: Tensors = {}
    t = 0

    def step(x: Tensors, gradients: Mapping[str, Tensor], rate: float) -> Tensors:
        nonlocal t
        t += 1
        keep = 1 - t**-0.8
        new = {}
        for name, g in gradients.items():
            squares = g**2 + 1e-30
            rows[name] = keep * rows.get(name, 0) + (1 - keep) * squares.sum(1)
            columns[name] = keep * columns.get(name, 0) + (1 - keep) * squares.sum(0)
            v_hat = torch.outer(rows[name], columns[name]) / rows[name].sum()
            update = g / v_hat.sqrt()
            update = update / max(1.0, float(update.square().mean().sqrt()))
            new[name] = x[name] - rate * (update + DECAY * x[name])
        return new

    return step


def prodigy() -> Step:
    """Mishchenko & Defazio, 2023, arXiv:2306.06101, algorithm 4, with Adam's bias correction and
    with a denominator that the warm-up does not make small."""
    start: Tensors = {}
    m: Tensors = {}
    v: Tensors = {}
    s: Tensors = {}
    r, d, t, keep = 0.0, 1e-6, 0, 0.999**0.5

    def step(x: Tensors, gradients: Mapping[str, Tensor], rate: float) -> Tensors:
        nonlocal r, d, t
        t += 1
        rate *= (1 - 0.999**t) ** 0.5 / (1 - 0.9**t)
        start.update({name: x[name] for name in x if name not in start})
        way = sum(float((g * (start[name] - x[name])).sum()) for name, g in gradients.items())
        r = keep * r + (1 - keep) * rate * d**2 * way
        for name, g in gradients.items():
            m[name] = 0.9 * m.get(name, 0 * g) + 0.1 * d * g
            v[name] = 0.999 * v.get(name, 0 * g) + 0.001 * (d * g) ** 2
            s[name] = keep * s.get(name, 0 * g) + (1 - keep) * d**2 * g
        next_d = max(d, r / sum(float(part.abs().sum()) for part in s.values()))
        new = {
            name: x[name]
            - rate * d * (m[name] / (v[name].sqrt() + next_d * 1e-8) + DECAY * x[name])
            for name in gradients
        }
        d = next_d
        return new

    return step


def schedule_free() -> Step:
    """Defazio et al., 2024, arXiv:2405.15682, algorithm 1: gradients are taken at y, which is what
    is returned, and z and x are kept; x is what the adapter is used with."""
    x: Tensors = {}
    z: Tensors = {}
    v: Tensors = {}
    t, most, total = 0, 0.0, 0.0

    def step(y: Tensors, gradients: Mapping[str, Tensor], rate: float) -> Tensors:
        nonlocal t, most, total
        t += 1
        most = max(most, rate)
        total += most**2
        new = {}
        for name, g in gradients.items():
            v[name] = 0.999 * v.get(name, 0 * g) + 0.001 * g**2
            update = g / ((v[name] / (1 - 0.999**t)).sqrt() + 1e-8) + DECAY * y[name]
            z[name] = z.get(name, y[name]) - rate * update
            share = most**2 / total
            x[name] = (1 - share) * x.get(name, y[name]) + share * z[name]
            new[name] = 0.1 * z[name] + 0.9 * x[name]
        step.used = x  # type: ignore[attr-defined]
        return new

    return step


@pytest.fixture
def attachment() -> Attachment:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_q, self.to_k = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8)

    unet = nn.ModuleDict({"x": nn.ModuleDict({"attn1": Attention()})})
    draws = torch.Generator().manual_seed(0)
    made = attach_new({"unet": unet}, Adapter(rank=2, alpha=2), draws)
    for layer in made.layers.values():  # factors of zero would hide what decay does
        layer.up.data.normal_(generator=draws)
    return made


def _both(
    name: str, attachment: Attachment, formula: Step, rate: float, dtype: torch.dtype
) -> tuple[Tensors, Tensors, torch.optim.Optimizer]:
    """The factors after some steps, ours and the formula's, and our optimizer."""
    named = factors.named(attachment.layers)
    for factor in named.values():
        factor.data = factor.data.to(dtype)
    options: dict[str, Any] = {"name": name, "learning_rate": rate, "weight_decay": DECAY}
    optimizer = optimizers.build(Optimizer(**options), attachment)
    if hasattr(optimizer, "train"):
        optimizer.train()
    theirs = {key: factor.detach().double().clone() for key, factor in named.items()}
    draws = torch.Generator().manual_seed(1)
    for share in FACTORS:
        # The direction has a part that stays: Prodigy looks for one.
        gradients = {
            key: torch.randn(factor.shape, generator=draws, dtype=torch.float64)
            + factor.detach().double().sign()
            for key, factor in named.items()
        }
        for key, factor in named.items():
            factor.grad = gradients[key].to(dtype, copy=True)
        optimizers.set_rates(optimizer, share)
        optimizer.step()
        theirs = formula(theirs, gradients, rate * share)
    return {key: factor.detach() for key, factor in named.items()}, theirs, optimizer


@pytest.mark.parametrize(
    ("name", "formula", "rate"),
    [
        ("adamw", adamw, 1e-2),
        ("lion", lion, 1e-2),
        ("adafactor", adafactor, 1e-2),
        ("prodigy", prodigy, 1.0),
        ("schedule_free", schedule_free, 1e-2),
    ],
)
def test_a_step_is_the_papers(
    attachment: Attachment, name: str, formula: Callable[[], Step], rate: float
) -> None:
    step = formula()
    ours, theirs, optimizer = _both(name, attachment, step, rate, torch.float64)
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-6, atol=1e-9)
    if name == "schedule_free":
        named = factors.named(attachment.layers)
        with factors.as_used(named, optimizer, None):
            for key, factor in named.items():
                torch.testing.assert_close(factor.detach(), step.used[key])  # type: ignore[attr-defined]


def test_eight_bits_are_close_to_adamw(attachment: Attachment) -> None:
    named = factors.named(attachment.layers)
    before = {key: factor.detach().double().clone() for key, factor in named.items()}
    ours, theirs, optimizer = _both("adamw8bit", attachment, adamw(), 1e-2, torch.float32)
    sizes = {
        moment.dtype
        for state in optimizer.state.values()
        for key, moment in state.items()
        if key == "state1"
    }
    assert torch.uint8 in sizes  # or the test would be of something else
    for key in ours:
        moved, differing = theirs[key] - before[key], ours[key].double() - theirs[key]
        assert float(differing.norm()) < 0.05 * float(moved.norm())
