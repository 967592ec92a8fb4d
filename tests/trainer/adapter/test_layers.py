"""The one formula against PEFT's layer and against autograd's own arithmetic."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from trainer.adapter.layers import LoraConv2d, LoraLinear, initial_factors, wrap

RANK, SCALE = 4, 0.5


def _layer(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    if kind == "linear":
        return nn.Linear(12, 20), torch.randn(3, 5, 12)
    stride = 2 if kind == "strided" else 1
    return nn.Conv2d(6, 10, 3, stride=stride, padding=1), torch.randn(3, 6, 8, 8)


def _factors(base: nn.Module) -> tuple[Tensor, Tensor]:
    down, up = initial_factors(base, RANK, torch.Generator().manual_seed(2))
    return down, torch.randn(up.shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", ["linear", "convolution", "strided"])
def test_equals_peft_in_output_and_gradients(kind: str) -> None:
    base, x = _layer(kind)
    down, up = _factors(base)
    ours = wrap(base, down.clone(), up.clone(), torch.full((RANK,), SCALE))
    ours.down.requires_grad_(True)
    ours.up.requires_grad_(True)

    holder = nn.Sequential(_layer(kind)[0])
    config = LoraConfig(r=RANK, lora_alpha=RANK * SCALE, target_modules=["0"])
    theirs = inject_adapter_in_model(config, holder)[0]
    with torch.no_grad():
        theirs.lora_A.default.weight.copy_(down)
        theirs.lora_B.default.weight.copy_(up)

    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = ours(mine), theirs(other)
    cotangent = torch.randn_like(y)
    y.backward(cotangent)
    expected.backward(cotangent)

    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(y, expected, **close)
    torch.testing.assert_close(mine.grad, other.grad, **close)
    torch.testing.assert_close(ours.down.grad, theirs.lora_A.default.weight.grad, **close)
    torch.testing.assert_close(ours.up.grad, theirs.lora_B.default.weight.grad, **close)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_a_new_adapter_changes_nothing(kind: str) -> None:
    base, x = _layer(kind)
    layer = wrap(base, *initial_factors(base, RANK, torch.Generator()), torch.ones(RANK))
    assert torch.equal(layer(x), base(x))


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_gates_per_image_equal_separate_runs(kind: str) -> None:
    base, x = _layer(kind)
    down, up = _factors(base)
    strengths = torch.tensor([0.0, 0.7, -1.5])
    together = wrap(base, down, up, strengths[:, None].expand(-1, RANK))(x)
    for index, strength in enumerate(strengths):
        alone = wrap(base, down, up, strength.expand(RANK))(x[index : index + 1])
        torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-5, atol=1e-5)


def test_the_update_is_linear_in_the_gate() -> None:
    base, x = _layer("linear")
    layer = LoraLinear(base, *_factors(base), None)
    gate = torch.rand(RANK)
    torch.testing.assert_close(layer.update(x, 3 * gate), 3 * layer.update(x, gate))


def test_factors_stay_fp32_on_a_half_precision_base() -> None:
    base = nn.Conv2d(6, 10, 3, padding=1).to(torch.bfloat16)
    layer = LoraConv2d(base, *_factors(base), torch.ones(RANK))
    layer.up.requires_grad_(True)
    y = layer(torch.randn(1, 6, 8, 8, dtype=torch.bfloat16))
    y.sum().backward()
    assert y.dtype is torch.bfloat16
    assert layer.up.grad is not None and layer.up.grad.dtype is torch.float32
