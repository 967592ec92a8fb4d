"""Fusing: one rounding, an honest account of it, and refusal where the adapter would be lost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.adapter import families
from trainer.adapter.compose import combine
from trainer.adapter.factors import LowRank
from trainer.adapter.fuse import fuse, fuse_weight
from trainer.errors import AdapterError

SIDE = 256


def weight_and_delta(ratio: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and a ΔW whose norm is `ratio` of the weight's."""
    generator = torch.Generator().manual_seed(seed)
    weight = 0.02 * torch.randn(SIDE, SIDE, generator=generator)
    delta = torch.randn(SIDE, SIDE, generator=generator)
    return weight, delta * (ratio * weight.norm() / delta.norm())


@pytest.mark.parametrize(
    ("ratio", "dtype", "gain"),
    [
        (1e-1, torch.float16, 1.0), (1e-2, torch.float16, 1.0), (1e-3, torch.float16, 1.0),
        (1e-1, torch.bfloat16, 1.0), (1e-2, torch.bfloat16, 1.0), (1e-3, torch.bfloat16, 0.53),
        (1e-4, torch.float16, 0.44), (1e-4, torch.bfloat16, 0.06), (1e-4, torch.float32, 1.0),
    ],
)  # fmt: skip
def test_gains_are_those_measured_of_real_formats(
    ratio: float, dtype: torch.dtype, gain: float
) -> None:
    """The table of the merging notes: effective gain by ρ = ‖Δ‖/‖W‖ and format."""
    weight, delta = weight_and_delta(ratio)
    fused = fuse_weight(weight.to(dtype), delta)
    assert fused.gain == pytest.approx(gain, abs=0.05)
    assert fused.weight.dtype == dtype


@settings(max_examples=30)
@given(st.floats(1e-5, 1), st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
def test_one_rounding_and_its_exact_account(ratio: float, dtype: torch.dtype) -> None:
    weight, delta = weight_and_delta(ratio)
    weight = weight.to(dtype)
    fused = fuse_weight(weight, delta)
    assert torch.equal(fused.weight, (weight.float() + delta).to(dtype))
    change = fused.weight.double() - weight.double()
    wide = delta.double()
    assert fused.gain == pytest.approx(float((change * wide).sum() / wide.square().sum()), abs=1e-3)
    assert fused.error == pytest.approx(float((change - wide).norm() / wide.norm()), abs=1e-3)
    assert fused.unchanged == float((fused.weight == weight).double().mean())


def test_a_zero_delta_changes_nothing() -> None:
    weight, _ = weight_and_delta(1)
    fused = fuse_weight(weight.half(), torch.zeros_like(weight))
    assert torch.equal(fused.weight, weight.half())
    assert (fused.gain, fused.error) == (1.0, 0.0)


def test_overflow_is_refused() -> None:
    weight = torch.full((2, 2), 60_000.0).half()
    assert not fuse_weight(weight, weight.float()).finite
    with pytest.raises(AdapterError, match=r"not finite in unet\.to_q"):
        fuse({"unet.to_q": weight}, {"unet.to_q": LowRank(torch.ones(1, 2), weight[:, :1], 1.0)})


def base(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        path: torch.randn(shape, generator=generator).to(dtype)
        for path, shape in families.SMALL.items()
    } | {"unet.other": torch.ones(2, dtype=dtype)}


def test_a_base_with_an_adapter_in_it_is_a_new_base() -> None:
    weights, adapter = base(), families.random_adapter(families.SMALL)
    before = {path: weight.clone() for path, weight in weights.items()}
    fused, report = fuse(weights, adapter)
    for path, layer in adapter.items():
        assert torch.equal(fused[path], before[path] + layer.delta())
    assert fused["unet.other"] is weights["unet.other"]
    assert all(torch.equal(weights[path], before[path]) for path in weights)
    assert not report.doubtful
    assert "100.0%" in report.to_words()


def test_several_adapters_are_rounded_once() -> None:
    made = [families.random_adapter(families.SMALL, seed=seed) for seed in range(5)]
    weights = base(torch.bfloat16)
    _, once = fuse(weights, combine([(one, 0.05) for one in made]))
    rounded = weights
    for one in made:
        rounded, _ = fuse(rounded, combine([(one, 0.05)]))
    total = combine([(one, 0.05) for one in made])
    one_by_one = [
        families.relative(rounded[path].float() - weights[path].float(), layer.delta())
        for path, layer in total.items()
    ]
    assert sum(once.errors.values()) < 0.8 * sum(one_by_one)


def test_a_layer_that_training_hardly_moved_does_not_stand_in_the_way() -> None:
    adapter = families.random_adapter(families.SMALL)
    path = next(iter(adapter))
    faint = combine([({path: adapter[path]}, 1e-4)])
    _, report = fuse(base(torch.bfloat16), {**adapter, **faint})
    assert report.gains[path] < 0.95
    assert path in report.doubtful
    assert report.gain == pytest.approx(1, abs=0.01)


def test_an_adapter_that_rounding_would_lose_is_refused_with_a_way_out() -> None:
    faint = combine([(families.random_adapter(families.SMALL), 1e-4)])
    with pytest.raises(AdapterError, match="fp32"):
        fuse(base(torch.bfloat16), faint)
    fused, _ = fuse(base(torch.bfloat16), faint, torch.float32)
    assert all(fused[path].dtype == torch.float32 for path in faint)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_bases_are_refused_with_a_way_out(dtype: torch.dtype) -> None:
    weights = {path: weight.to(dtype) for path, weight in base().items()}
    with pytest.raises(AdapterError, match="quantise again"):
        fuse(weights, families.random_adapter(families.SMALL))


def test_a_layer_that_the_base_lacks_is_named() -> None:
    with pytest.raises(AdapterError, match="conv1"):
        fuse({}, {"unet.conv1": families.low_rank((3, 3), 1, 1.0, torch.Generator())})


def test_doubtful_layers_are_named_the_worst_first() -> None:
    weights = base(torch.bfloat16)
    adapter = combine([(families.random_adapter(families.SMALL), 0.05)])
    _, report = fuse(weights, adapter)
    assert report.doubtful
    worst = max(report.errors, key=lambda path: report.errors[path])
    assert report.doubtful[0] == worst
    assert worst in report.to_words()
