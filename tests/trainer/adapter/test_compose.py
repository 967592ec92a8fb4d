"""Composition against its definition: sums of ΔW, tails of spectra, and PEFT's own results."""

from __future__ import annotations

import math
from collections.abc import Sequence

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.trainer.adapter import families
from tests.trainer.adapter.families import relative
from trainer.adapter import algebra
from trainer.adapter.adapter import LowRank
from trainer.adapter.algebra import Cut
from trainer.adapter.blocks import BlockWeights, block_list, block_of, in_order
from trainer.adapter.compose import combine, compress, extract
from trainer.errors import AdapterError
from trainer.model.bases import Family

WEIGHTS = st.floats(-3, -1e-6) | st.just(0.0) | st.floats(1e-6, 3)
RANKS = st.integers(1, 8)
quickly = settings(max_examples=40)


def adapters(ranks: Sequence[int]) -> list[dict[str, LowRank]]:
    return [
        families.random_adapter(families.SMALL, rank=rank, alpha=1.5 + index, seed=index)
        for index, rank in enumerate(ranks)
    ]


@quickly
@given(st.lists(st.tuples(RANKS, WEIGHTS), min_size=1, max_size=4))
def test_a_combination_is_the_weighted_sum(chosen: list[tuple[int, float]]) -> None:
    made = adapters([rank for rank, _ in chosen])
    weights = [weight for _, weight in chosen]
    combined = combine(list(zip(made, weights, strict=True)))
    for path in families.SMALL:
        wanted = sum(w * one[path].delta().double() for one, w in zip(made, weights, strict=True))
        assert isinstance(wanted, Tensor)
        terms = sum(
            abs(w) * float(one[path].delta().norm()) for one, w in zip(made, weights, strict=True)
        )
        if terms == 0:
            assert path not in combined
        else:
            assert float((combined[path].delta() - wanted).norm()) <= 1e-6 * terms


def test_layers_that_only_one_adapter_has_are_kept() -> None:
    one, two = adapters([2, 3])
    first = next(iter(families.SMALL))
    del two[first]
    combined = combine([(one, 1.0), (two, 2.0)])
    assert combined.keys() == one.keys()
    assert combined[first].rank == 2
    assert all(layer.scale == 1 for layer in combined.values())


def test_adapters_for_different_bases_are_refused() -> None:
    one, two = adapters([2, 2])
    path = next(iter(two))
    two[path] = families.low_rank((5, 7), 2, 1.0, torch.Generator())
    with pytest.raises(AdapterError, match="different bases"):
        combine([(one, 1.0), (two, 1.0)])


def test_a_linear_layer_and_a_convolution_of_single_pixels_combine() -> None:
    generator = torch.Generator().manual_seed(0)
    linear = families.low_rank((6, 5), 2, 1.0, generator)
    conv = families.low_rank((6, 5, 1, 1), 3, 1.0, generator)
    combined = combine([({"unet.x": linear}, 1.0), ({"unet.x": conv}, -1.0)])["unet.x"]
    wanted = linear.delta()[:, :, None, None] - conv.delta()
    assert relative(combined.delta(), wanted) < 1e-6


def test_block_weights_follow_the_longest_prefix() -> None:
    (one,) = adapters([2])
    weights = BlockWeights({"unet": 0.5, "unet.up_blocks.1": 0.0, "text_encoder": -2.0})
    combined = combine([(one, weights)])
    for path, layer in one.items():
        factor = -2.0 if path.startswith("text") else 0.0 if "up_blocks.1" in path else 0.5
        if factor:
            assert relative(combined[path].delta(), factor * layer.delta()) < 1e-6
        else:
            assert path not in combined
    assert weights("unet.up_blocks.10.x") == 0.5


@pytest.mark.parametrize(
    ("family", "length", "place", "path"),
    [
        (Family.SD1, 17, 0, "text_encoder.text_model.encoder.layers.0.mlp.fc1"),
        (Family.SD1, 17, 6, "unet.down_blocks.2.attentions.1.proj_in"),
        (Family.SD1, 17, 7, "unet.mid_block.attentions.0.proj_in"),
        (Family.SD1, 17, 8, "unet.up_blocks.1.attentions.0.proj_in"),
        (Family.SD2, 17, 16, "unet.up_blocks.3.attentions.2.proj_in"),
        (Family.SD1, 26, 0, "unet.time_embedding.linear_1"),
        (Family.SD1, 26, 1, "unet.conv_in"),
        (Family.SD1, 26, 4, "unet.down_blocks.0.downsamplers.0.conv"),
        (Family.SD1, 26, 16, "unet.up_blocks.0.upsamplers.0.conv"),
        (Family.SDXL, 12, 1, "unet.down_blocks.1.attentions.0.proj_in"),
        (Family.SDXL, 12, 11, "unet.up_blocks.1.attentions.2.proj_in"),
        (Family.SDXL, 20, 0, "text_encoder_2.text_model.encoder.layers.0.mlp.fc1"),
        (Family.SDXL, 20, 19, "unet.up_blocks.2.resnets.2.conv1"),
    ],
)
def test_listed_weights_are_at_their_places(
    family: Family, length: int, place: int, path: str
) -> None:
    weights = block_list([float(index == place) for index in range(length)], family)
    assert weights(path) == 1
    others = block_list([float(index != place) for index in range(length)], family)
    assert others(path) == 0


def test_places_that_a_list_leaves_out_have_no_adapter() -> None:
    assert block_list([1.0] * 17, Family.SD1)("unet.conv_in") == 0
    with pytest.raises(ValueError, match="12 or 20"):
        block_list([1.0] * 17, Family.SDXL)


def test_blocks_are_prefixes_in_the_order_of_the_model() -> None:
    blocks = sorted({block_of(path) for path in families.SMALL}, key=in_order)
    assert blocks == [
        "text_encoder",
        "unet.down_blocks.0",
        "unet.down_blocks.1",
        "unet.mid_block",
        "unet.up_blocks.1",
    ]
    assert block_of("unet.conv_in") == "unet.conv_in"
    assert block_of("unet.time_embedding.linear_1") == "unet.time_embedding"


@quickly
@given(rank=st.integers(1, 20), kept=st.integers(1, 12), energy=st.floats(0.05, 1))
def test_a_compression_loses_the_tail_of_the_spectrum(rank: int, kept: int, energy: float) -> None:
    (one,) = adapters([rank])
    for cut in (Cut(rank=kept), Cut(energy=energy), Cut(kept, energy)):
        smaller, error = compress(one, cut)
        lost = total = 0.0
        for path, layer in one.items():
            values = torch.linalg.svdvals(layer.delta().double().flatten(1))
            squares = values.square()
            tail = float(squares[smaller[path].rank :].sum())
            whole = float(squares.sum())
            lost, total = lost + tail, total + whole
            assert error.layers[path] == pytest.approx(math.sqrt(tail / whole), abs=1e-5)
            assert relative(smaller[path].delta(), layer.delta()) == pytest.approx(
                error.layers[path], abs=1e-5
            )
            if cut.rank:
                assert smaller[path].rank <= cut.rank
            elif cut.energy:
                assert tail <= (1 - cut.energy) * whole * (1 + 1e-9) + 1e-9 * whole
        assert error.total == pytest.approx(math.sqrt(lost / total), abs=1e-5)


def test_a_mix_of_alike_adapters_compresses_to_nothing_lost() -> None:
    (one,) = adapters([3])
    mix = combine([(one, 0.7), (one, -0.2)])
    smaller, error = compress(mix, Cut())
    assert error.total < 1e-6
    for path, layer in smaller.items():
        assert layer.rank <= 3
        assert relative(layer.delta(), 0.5 * one[path].delta()) < 1e-5


def test_factors_share_the_size_so_that_half_precision_keeps_them() -> None:
    layer = LowRank(torch.randn(4, 30) * 1e3, torch.randn(20, 4) * 1e-6, 4.0)
    smaller, _ = compress({"unet.x": layer}, Cut(rank=4))
    ratio = smaller["unet.x"].up.norm() / smaller["unet.x"].down.norm()
    assert float(ratio) == pytest.approx(1, abs=0.01)


def test_norms_and_inner_products_need_no_product() -> None:
    one, two = adapters([3, 5])
    for path in families.SMALL:
        a, b = one[path].delta().double(), two[path].delta().double()
        assert algebra.inner(one[path], two[path]) == pytest.approx(float((a * b).sum()), rel=1e-4)
        assert algebra.norm(one[path]) == pytest.approx(float(a.norm()), rel=1e-5)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 4, 3, 3), (40, 2, 3, 3)])
def test_the_spectrum_of_a_whole_matrix_is_its_singular_values(shape: tuple[int, ...]) -> None:
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    spectrum = algebra.dense_spectrum(delta)
    wanted = torch.linalg.svdvals(delta.double().flatten(1))
    assert torch.allclose(spectrum.values, wanted, rtol=1e-6)
    whole = spectrum.left * spectrum.values @ spectrum.right
    assert relative(whole, delta.double().flatten(1)) < 1e-7


def test_what_training_added_is_extracted() -> None:
    generator = torch.Generator().manual_seed(0)
    base = {path: torch.randn(shape, generator=generator) for path, shape in families.SMALL.items()}
    (one,) = adapters([3])
    tuned = {path: weight + one[path].delta() for path, weight in base.items()}
    tuned["unet.only.here"] = torch.ones(2, 2)
    adapter, error = extract(tuned, base, Cut(rank=3))
    assert adapter.keys() == one.keys()
    assert error.total < 1e-5  # the rounding of base + ΔW
    for path, layer in adapter.items():
        assert layer.rank == 3
        assert relative(layer.delta(), one[path].delta()) < 1e-5
    with pytest.raises(AdapterError, match="the same"):
        extract(base, base, Cut())
    with pytest.raises(AdapterError, match="differ at"):
        extract({"unet.x": torch.ones(2, 2)}, {"unet.x": torch.ones(2, 3)}, Cut())


class Two(nn.Module):
    """Layers for PEFT to adapt."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(16, 24)
        self.conv1 = nn.Conv2d(6, 10, 3)


def peft_model(ranks: Sequence[int]) -> tuple[peft.PeftModel, list[dict[str, LowRank]]]:
    """A PEFT model with an adapter of each rank, and the same as our data."""
    torch.manual_seed(0)
    configs = [
        peft.LoraConfig(
            r=r, lora_alpha=3, init_lora_weights=False, target_modules=["to_q", "conv1"]
        )
        for r in ranks
    ]
    model = peft.get_peft_model(Two(), configs[0], adapter_name="0")  # type: ignore[arg-type]
    for index, config in enumerate(configs[1:], start=1):
        model.add_adapter(str(index), config)
    ours = []
    for index, rank in enumerate(ranks):
        layers = {name: getattr(model.base_model.model, name) for name in ("to_q", "conv1")}
        ours.append(
            {
                name: LowRank(
                    layer.lora_A[str(index)].weight.detach(),
                    layer.lora_B[str(index)].weight.detach(),
                    3.0,
                )
                for name, layer in layers.items()
            }
        )
        assert ours[-1]["to_q"].rank == rank
    return model, ours


@pytest.mark.parametrize("method", ["cat", "svd"])
def test_peft_agrees(method: str) -> None:
    model, ours = peft_model([2, 4])
    weights = [0.7, -1.3] if method == "svd" else [0.7, 1.3]
    model.add_weighted_adapter(["0", "1"], weights, "mix", combination_type=method, svd_rank=3)
    mix = combine(list(zip(ours, weights, strict=True)))
    if method == "svd":
        mix, _ = compress(mix, Cut(rank=3))
    for name, layer in mix.items():
        wanted = getattr(model.base_model.model, name).get_delta_weight("mix").detach()
        assert relative(layer.delta(), wanted) < 1e-5
