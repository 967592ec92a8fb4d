"""Which layers are adapted, and how: names, ranks and scales, from shapes alone."""

from __future__ import annotations

import math
from typing import Any

import pytest

from trainer.adapter.plan import plan
from trainer.errors import UserError
from trainer.model.bases import Family
from trainer.model.shapes import outline
from trainer.settings import Adapter

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, ...]]:
    """SD 1.5's layers."""
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: None)
    base = outline(SD15)
    assert base is not None and base.family is Family.SD1
    return {path: shape for part in base.parts.values() for path, shape in part.shapes.items()}


def test_the_usual_targets_have_the_usual_sizes(shapes: dict[str, Any]) -> None:
    """Attention at rank 8 is 1,594,368 parameters in the UNet, as PEFT counts them."""
    unet = {path: shape for path, shape in shapes.items() if path.startswith("unet.")}
    plans = plan(unet, Adapter(rank=8, alpha=8))
    assert len(plans) == 128
    assert sum(planned.parameters for planned in plans.values()) == 1_594_368


@pytest.mark.parametrize(
    ("patterns", "count"),
    [
        (("unet.*.attn2.to_[kv]",), 32),
        (("unet.mid_block",), 12 + 6),  # one transformer, two residual blocks
        (("*.conv_shortcut", "unet.conv_in"), 15),
        (("text_encoder.*.fc1",), 12),
    ],
)
def test_patterns_choose_layers_by_name(
    shapes: dict[str, Any], patterns: tuple[str, ...], count: int
) -> None:
    assert len(plan(shapes, Adapter(layers=patterns))) == count


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"layers": ("unet.*.attn2.to_w",)}, r"'unet.\*.attn2.to_w' matches no layer. Is it "),
        ({"layers": ("unet.mid_blok",)}, "Is it unet.mid_block"),
        ({"layers": ("zzzzzz",)}, "'zzzzzz' matches no layer.$"),
        ({"block_ranks": ("unet.nowhere=4",)}, "no layer's path starts with 'unet.nowhere'"),
        (
            {"layers": ("unet.*",), "block_ranks": ("text_encoder=4",)},
            "encoder is not trained here",
        ),
        ({"block_ranks": ("unet=many",)}, "'unet=many' is not BLOCK=NUMBER"),
        ({"block_ranks": ("unet=2.5",)}, "a rank is from 0 to 1024"),
        ({"block_ranks": ("unet=0", "text_encoder=0")}, "leaves no layer to train"),
    ],
)
def test_what_means_nothing_is_named(
    shapes: dict[str, Any], wanted: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        plan(shapes, Adapter(**wanted))


def test_ranks_by_block_keep_the_scale(shapes: dict[str, Any]) -> None:
    plans = plan(shapes, Adapter(rank=16, alpha=8, text_encoder_rank=4,
                                 block_ranks=("unet.up_blocks=8", "unet.up_blocks.1=2",
                                              "unet.mid_block=0")))  # fmt: skip
    ranks = {path.split(".transformer")[0]: planned.rank for path, planned in plans.items()}
    assert ranks["unet.down_blocks.0.attentions.0"] == 16
    assert ranks["unet.up_blocks.1.attentions.0"] == 2
    assert ranks["unet.up_blocks.2.attentions.0"] == 8
    assert not any(path.startswith("unet.mid_block") for path in plans)
    assert plans["text_encoder.text_model.encoder.layers.0.self_attn.q_proj"].rank == 4
    assert {planned.alpha / planned.rank for planned in plans.values()} == {0.5}


def test_the_stabilised_scale_falls_with_the_root_of_the_rank(shapes: dict[str, Any]) -> None:
    wanted = Adapter(rank=16, alpha=8, rank_stabilised=True, block_ranks=("unet.mid_block=64",))
    for path, planned in plan(shapes, wanted).items():
        rank = 64 if path.startswith("unet.mid_block") else 16
        assert planned.alpha / planned.rank == pytest.approx(8 / math.sqrt(rank))
