"""The one formula against PEFT's layer and against autograd's own arithmetic."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from trainer.adapter.kinds import KINDS
from trainer.adapter.layers import LoraConv2d, LoraLinear, initial, shape_of, wrap

RANK, SCALE = 4, 0.5


def _layer(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    if kind == "linear":
        return nn.Linear(12, 20), torch.randn(3, 5, 12)
    stride = 2 if kind == "strided" else 1
    return nn.Conv2d(6, 10, 3, stride=stride, padding=1), torch.randn(3, 6, 8, 8)


def _fresh(base: nn.Module) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(2)
    factors = KINDS["lora"].factors(shape_of(base), RANK)
    return initial(factors["down"], base, draws), initial(factors["up"], base, draws)


def _factors(base: nn.Module) -> tuple[Tensor, Tensor]:
    down, up = _fresh(base)
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
    layer = wrap(base, *_fresh(base), torch.ones(RANK))
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
    once, thrice = (layer.with_update(x, times * gate) - base(x) for times in (1, 3))
    torch.testing.assert_close(thrice, 3 * once, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_operation_equals_autograd_of_several(per_image: bool, dtype: torch.dtype) -> None:
    base, x = _layer("linear")
    base.requires_grad_(False).to(dtype)
    down, up = _factors(base)
    gate = torch.rand((3, RANK) if per_image else (RANK,))
    layer = wrap(base, down.clone(), up.clone(), gate)
    layer.down.requires_grad_(True)
    layer.up.requires_grad_(True)
    ours = x.to(dtype).requires_grad_()
    y = layer(ours)
    cotangent = torch.randn(y.shape)
    y.backward(cotangent.to(dtype))

    theirs = x.to(dtype).float().requires_grad_()
    down.requires_grad_(True)
    up.requires_grad_(True)
    weight, bias = base.weight.float(), base.bias.float()  # type: ignore[operator]
    gates = gate[:, None] if per_image else gate
    expected = theirs @ weight.T + bias + (theirs @ down.T * gates) @ up.T
    expected.backward(cotangent.to(dtype).float())

    close = 3e-7 if dtype is torch.float32 else 1e-2
    pairs = [(y, expected), (ours.grad, theirs.grad),
             (layer.down.grad, down.grad), (layer.up.grad, up.grad)]  # fmt: skip
    for mine, other in pairs:
        assert mine is not None and other is not None
        assert float((mine.float() - other).norm() / other.norm()) < close


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_nothing_large_is_held_but_the_input(kind: str) -> None:
    base, x = _layer(kind)
    base.requires_grad_(False)
    layer = wrap(base, *_factors(base), torch.ones(RANK))
    layer.down.requires_grad_(True)
    layer.up.requires_grad_(True)
    held: dict[int, int] = {}

    def hold(tensor: Tensor) -> Tensor:
        held[tensor.data_ptr()] = tensor.numel()
        return tensor

    x.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        y = layer(x)
    known = {tensor.data_ptr() for tensor in (x, base.weight, layer.down, layer.up)}
    hidden = y.numel() // y.shape[1 if kind == "convolution" else -1] * RANK
    assert sum(size for place, size in held.items() if place not in known) <= 2 * hidden + RANK


def test_factors_stay_fp32_on_a_half_precision_base() -> None:
    base = nn.Conv2d(6, 10, 3, padding=1).to(torch.bfloat16)
    layer = LoraConv2d(base, *_factors(base), torch.ones(RANK))
    layer.up.requires_grad_(True)
    y = layer(torch.randn(1, 6, 8, 8, dtype=torch.bfloat16))
    y.sum().backward()
    assert y.dtype is torch.bfloat16
    assert layer.up.grad is not None and layer.up.grad.dtype is torch.float32
