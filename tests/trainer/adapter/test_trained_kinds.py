"""Layers that are trained: each kind against its formula, and from its file as it was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, inject_adapter_in_model
from torch import Tensor, nn

from tests.trainer.adapter import families
from trainer import settings
from trainer.adapter.adapter import load, save
from trainer.adapter.attach import attach, attach_new, read_back
from trainer.adapter.header import Header, read_header
from trainer.adapter.keys import kohya_key
from trainer.adapter.kinds import KINDS
from trainer.adapter.kinds.lokr import factorization
from trainer.adapter.layers import AdapterLayer, initial, shape_of
from trainer.model.bases import Family

TRAINED = [kind for kind in KINDS if kind != "full"]


def _base(shape: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    if shape == "linear":
        base: nn.Module = nn.Linear(12, 20)
        return base.requires_grad_(False), torch.randn(3, 5, 12)
    return nn.Conv2d(6, 10, 3, stride=2, padding=1).requires_grad_(False), torch.randn(3, 6, 8, 8)


def _trained(kind: str, base: nn.Module, rank: int = 2, alpha: float = 3.0) -> AdapterLayer:
    """A layer of a kind, some way from where it began."""
    draws = torch.Generator().manual_seed(0)
    factors = KINDS[kind].factors(shape_of(base), rank)
    tensors = {role: initial(factor, base, draws) for role, factor in factors.items()}
    layer = KINDS[kind].trainable(base, tensors, alpha)
    for factor in layer.factors.values():
        factor.data += 0.3 * torch.randn(factor.shape, generator=draws)
        factor.requires_grad_(True)
    return layer


@pytest.mark.parametrize("shape", ["linear", "convolution"])
@pytest.mark.parametrize("kind", TRAINED)
def test_a_new_layer_changes_nothing(kind: str, shape: str) -> None:
    base, x = _base(shape)
    factors = KINDS[kind].factors(shape_of(base), 2)
    draws = torch.Generator().manual_seed(0)
    layer = KINDS[kind].trainable(
        base, {role: initial(factor, base, draws) for role, factor in factors.items()}, 2.0
    )
    layer.use([1.0], torch.ones(2))
    torch.testing.assert_close(layer(x), base(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", ["linear", "convolution"])
@pytest.mark.parametrize("kind", TRAINED)
def test_output_and_gradients_are_those_of_the_changed_weight(kind: str, shape: str) -> None:
    """The oracle is the whole weight W + ΔW, with DoRA's norm a constant as in its paper."""
    base, x = _base(shape)
    layer = _trained(kind, base)
    rank = layer.factors["down"].shape[0] if "down" in layer.factors else 2
    layer.use([1.0], torch.full((rank,), 3.0 / rank))
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = layer(mine)
    cotangent = torch.randn_like(y)
    y.backward(cotangent)
    got = {role: factor.grad for role, factor in layer.factors.items()}
    layer.zero_grad()

    weight: Tensor = base.weight  # type: ignore[assignment]
    data = layer.data()
    if kind == "dora":
        merged = weight + data.direction.delta()  # type: ignore[union-attr]
        others = [dim for dim in range(weight.dim()) if dim != 1]
        norms = merged.detach().square().sum(others, keepdim=True).sqrt()
        whole = merged * layer.factors["dora_scale"] / norms
    else:
        whole = weight + data.delta().reshape(weight.shape)  # type: ignore[call-arg, union-attr]
    bias: Tensor = base.bias  # type: ignore[assignment]
    if isinstance(base, nn.Conv2d):
        expected = nn.functional.conv2d(other, whole, bias, stride=2, padding=1)
    else:
        expected = nn.functional.linear(other, whole, bias)
    expected.backward(cotangent)
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(y, expected, **close)
    torch.testing.assert_close(mine.grad, other.grad, **close)
    for role, factor in layer.factors.items():
        torch.testing.assert_close(got[role], factor.grad, **close)


@pytest.mark.parametrize("kind", TRAINED)
def test_strength_is_linear_and_may_differ_by_image(kind: str) -> None:
    base, x = _base("linear")
    layer = _trained(kind, base)

    def at(strength: float | Tensor) -> Tensor:
        column = strength[:, None] if isinstance(strength, Tensor) else strength
        layer.use([strength], column * torch.full((2,), 1.5))
        return (layer(x) - base(x)).detach()

    torch.testing.assert_close(at(-0.5), -0.5 * at(1.0), rtol=1e-4, atol=1e-5)
    assert torch.equal(at(0.0), torch.zeros(3, 5, 20))
    strengths = torch.tensor([0.0, 0.7, -1.5])
    torch.testing.assert_close(at(strengths), strengths[:, None, None] * at(1.0), rtol=1e-4,
                               atol=1e-5)  # fmt: skip


@pytest.mark.parametrize(("kind", "config"), [("loha", LoHaConfig), ("lokr", LoKrConfig)])
def test_peft_trains_the_same_layer(kind: str, config: Any) -> None:
    base, x = _base("linear")
    layer = _trained(kind, base, rank=2, alpha=3.0)
    layer.use([1.0], torch.full((2,), 1.5))
    theirs: Any = inject_adapter_in_model(
        config(r=2, alpha=3, target_modules=["0"]), nn.Sequential(_base("linear")[0])
    )[0]
    for role, factor in layer.factors.items():
        getattr(theirs, role)["default"].data.copy_(factor.detach())
    y, expected = layer(x), theirs(x)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    y.square().sum().backward()
    expected.square().sum().backward()
    for role, factor in layer.factors.items():
        torch.testing.assert_close(factor.grad, getattr(theirs, role)["default"].grad, rtol=1e-3,
                                   atol=1e-3)  # fmt: skip


@pytest.mark.parametrize("kind", TRAINED)
def test_limits_hold_and_keep_small_changes(kind: str) -> None:
    base, _ = _base("linear")
    layer = _trained(kind, base)
    limited = layer.direction if kind == "dora" else layer
    before = float(limited.change())  # type: ignore[operator]
    layer.limit(2 * before)
    assert float(limited.change()) == before  # type: ignore[operator]
    layer.limit(before / 2)
    assert float(limited.change()) == pytest.approx(before / 2, rel=1e-4)  # type: ignore[operator]


@pytest.mark.parametrize("kind", TRAINED)
@pytest.mark.parametrize("family", list(Family), ids=str)
def test_files_of_every_kind_and_family_are_read_back_as_trained(
    family: Family, kind: str, tmp_path: Path
) -> None:
    parts = {"unet": families.unet(family).requires_grad_(False),
             "text_encoder": families.text_encoder(family).requires_grad_(False)}  # fmt: skip
    wanted = settings.Adapter(
        kind=kind,  # type: ignore[arg-type]
        targets="linear-conv",
        rank=3,
        alpha=2,
        text_encoder_rank=2,
        block_ranks=("unet.mid_block=4",),
        rank_stabilised=True,
    )
    with attach_new(parts, wanted, torch.Generator().manual_seed(0)) as attachment:
        for layer in attachment.layers.values():
            for factor in layer.factors.values():
                factor.data += 0.1 * torch.randn(factor.shape)
        trained = read_back(attachment)
        weights = {path: layer.weight for path, layer in attachment.layers.items()}
    file = tmp_path / "a.safetensors"
    save(trained, file, Header("a", family), precision=torch.float32)
    loaded = load(file)
    assert not loaded.unused and loaded.family is family
    assert loaded.layers.keys() == trained.keys()
    assert read_header(file).header.kind == kind
    for path, layer in trained.items():
        read = loaded.layers[path]
        assert type(read) is type(layer)
        deltas = [
            one.delta(weights[path]) if kind == "dora" else one.delta()  # type: ignore[call-arg, union-attr]
            for one in (layer, read)
        ]
        assert families.relative(deltas[1], deltas[0].reshape(deltas[1].shape)) < 1e-5
    plain, _ = loaded.plain(base_weights=weights)
    attach(parts, {"a": plain}).detach()  # every layer fits its place


def test_factorizations_are_lycoris_own() -> None:
    """Pairs that LyCORIS' documentation and code give."""
    assert [factorization(n) for n in (128, 320, 768, 1280, 127)] == [
        (8, 16), (16, 20), (24, 32), (32, 40), (1, 127)]  # fmt: skip
    assert [factorization(n, 4) for n in (128, 250, 360, 512, 127)] == [
        (4, 32), (2, 125), (4, 90), (4, 128), (1, 127)]  # fmt: skip
    assert [factorization(n, 16) for n in (128, 250, 360, 512, 1024)] == [
        (8, 16), (10, 25), (15, 24), (16, 32), (16, 64)]  # fmt: skip


def test_keys_are_kohya_s_and_lycoris_own() -> None:
    assert kohya_key("lora_unet_x", "up") == "lora_unet_x.lora_up.weight"
    assert kohya_key("lora_unet_x", "hada_w1_a") == "lora_unet_x.hada_w1_a"
    assert kohya_key("lora_unet_x", "dora_scale") == "lora_unet_x.dora_scale"
