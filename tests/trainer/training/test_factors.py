"""An adapter's factors: norms without the product, averages, and a swap that leaves no trace."""

from __future__ import annotations

import pytest
import torch
from schedulefree import AdamWScheduleFree
from torch import nn

from trainer.adapter.layers import LoraLayer, wrap
from trainer.training import factors

SCALE = 0.5


@pytest.fixture
def layers() -> dict[str, LoraLayer]:
    torch.manual_seed(0)
    bases = {"unet.down_blocks.0.a": nn.Linear(6, 9), "unet.mid_block.b": nn.Conv2d(4, 5, 3)}
    bases["text_encoder.text_model.c"] = nn.Linear(5, 5)
    made: dict[str, LoraLayer] = {
        path: wrap(
            base,
            torch.randn(3, *base.weight.shape[1:]),
            torch.randn(base.weight.shape[0], 3, *[1] * (base.weight.dim() - 2)),
            torch.full((3,), SCALE),
        )
        for path, base in bases.items()
    }
    for layer in made.values():
        layer.alpha = 3 * SCALE
    return made


def _product(layer: LoraLayer) -> torch.Tensor:
    return SCALE * layer.up.detach().flatten(1) @ layer.down.detach().flatten(1)


def test_the_norm_is_that_of_the_product(layers: dict[str, LoraLayer]) -> None:
    for layer in layers.values():
        torch.testing.assert_close(layer.change(), _product(layer).norm())


def test_limited_norms_keep_the_direction(layers: dict[str, LoraLayer]) -> None:
    before = {path: _product(layer) for path, layer in layers.items()}
    limit = 0.5 * min(float(product.norm()) for product in before.values())
    factors.limit_norms(layers, limit)
    for path, layer in layers.items():
        after = _product(layer)
        assert float(after.norm()) == pytest.approx(limit, rel=1e-4)
        torch.testing.assert_close(after / after.norm(), before[path] / before[path].norm())
    kept = {path: _product(layer) for path, layer in layers.items()}
    factors.limit_norms(layers, 2 * limit)
    assert all(torch.equal(_product(layer), kept[path]) for path, layer in layers.items())


def test_change_and_gradients_by_block(layers: dict[str, LoraLayer]) -> None:
    change = factors.change_by_block(layers)
    assert list(change) == ["unet.down_blocks.0", "unet.mid_block", "text_encoder"]
    layer = layers["unet.mid_block.b"]
    expected = float(_product(layer).norm() / layer.weight.norm())
    assert change["unet.mid_block"] == pytest.approx(expected, rel=1e-4)
    layer.up.requires_grad_(True)
    layer(torch.randn(1, 4, 5, 5)).sum().backward()
    assert layer.up.grad is not None
    assert factors.gradients_by_block(layers) == {
        "unet.mid_block": pytest.approx(float(layer.up.grad.norm()), rel=1e-5)
    }


@pytest.mark.parametrize("first", [0, 100])  # with its short memory at first, and past it
def test_the_average_forgets_at_its_rate(layers: dict[str, LoraLayer], first: int) -> None:
    named = factors.named(layers)
    average = factors.Average(named, 0.9)
    start = {name: value.clone() for name, value in average.tensors.items()}
    for factor in named.values():
        factor.data.zero_()
    left = 1.0
    for step in range(first, first + 3):
        average.update(named, step)
        left *= min(0.9, (1 + step) / (10 + step))
    for name, value in average.tensors.items():
        torch.testing.assert_close(value, left * start[name])


@pytest.mark.parametrize("averaged", [False, True])
def test_use_leaves_no_trace(layers: dict[str, LoraLayer], averaged: bool) -> None:
    named = factors.named(layers)
    for factor in named.values():
        factor.requires_grad_(True)
    optimizer = AdamWScheduleFree(list(named.values()), lr=0.1)
    optimizer.train()
    for _ in range(3):
        sum(factor.square().sum() for factor in named.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()
    average = factors.Average(named, 0.5) if averaged else None
    before = {name: factor.detach().clone() for name, factor in named.items()}
    with factors.as_used(named, optimizer, average):
        moved = any(not torch.equal(named[name], before[name]) for name in named)
        assert moved != averaged  # the average was just made of these very factors
    assert all(torch.equal(named[name], before[name]) for name in named)
    assert all(group["train_mode"] for group in optimizer.param_groups)
