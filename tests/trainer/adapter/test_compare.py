"""The conflict report on adapters whose relation is known."""

from __future__ import annotations

import json

import pytest
import torch

from tests.trainer.adapter import families
from trainer.adapter import heatmap
from trainer.adapter.adapter import LowRank
from trainer.adapter.compare import compare, overlap
from trainer.adapter.compose import combine
from trainer.errors import AdapterError

SHAPES = {
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (200, 200),
    "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (200, 300),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (160, 160),
}


def adapter(seed: int = 0, rank: int = 4) -> dict[str, LowRank]:
    return families.random_adapter(SHAPES, rank=rank, seed=seed)


def test_an_adapter_agrees_with_itself() -> None:
    one = adapter()
    report = compare(("a", "b"), one, one)
    assert report.total.cosine == pytest.approx(1, abs=1e-6)
    assert report.total.inputs == pytest.approx(1, abs=1e-6)
    assert report.total.outputs == pytest.approx(1, abs=1e-6)
    assert report.total.gains == pytest.approx((2, 2), abs=1e-6)
    assert report.loss < 1e-6
    assert "much the same" in report.to_words()


def test_opposites_cancel() -> None:
    one = adapter()
    report = compare(("a", "b"), one, combine([(one, -0.5)]))
    assert report.total.cosine == pytest.approx(-1, abs=1e-6)
    assert report.total.gains == pytest.approx((0.5, -1), abs=1e-6)
    assert "against each other" in report.to_words()


def test_random_adapters_overlap_by_chance() -> None:
    report = compare(("a", "b"), adapter(0), adapter(1))
    assert abs(report.total.cosine) < 0.02
    assert report.total.inputs == pytest.approx(report.total.chance, abs=0.02)
    assert report.total.outputs == pytest.approx(report.total.chance, abs=0.02)
    assert "mix well" in report.to_words()


def test_the_same_features_put_to_other_use_are_told() -> None:
    one, two = adapter(0), adapter(1)
    shared = {path: LowRank(layer.down, two[path].up, layer.alpha) for path, layer in one.items()}
    report = compare(("a", "b"), one, shared)
    assert report.total.inputs > 0.9
    assert report.total.outputs < 0.2
    assert "same features" in report.to_words()


def test_the_gain_is_the_mix_s_projection() -> None:
    one, two = adapter(0), combine([(adapter(0), 0.3), (adapter(1), 1.0)])
    report = compare(("a", "b"), one, two)
    product = energy = 0.0
    for path in SHAPES:
        a, mix = one[path].delta(), one[path].delta() + two[path].delta()
        product += float((a * mix).sum())
        energy += float((a * a).sum())
    assert report.total.gains[0] == pytest.approx(product / energy, rel=1e-4)


def test_blocks_come_in_order_and_add_up() -> None:
    report = compare(("a", "b"), adapter(0), adapter(1))
    assert list(report.blocks) == ["text_encoder", "unet.down_blocks.0", "unet.up_blocks.1"]
    for index in (0, 1):
        shares = [block.shares[index] for block in report.blocks.values()]
        assert sum(shares) == pytest.approx(1)
        assert sum(report.strongest[index].values()) == pytest.approx(1)


def test_layers_of_one_alone_count_in_its_strength() -> None:
    one, two = adapter(0), adapter(1)
    path = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    del two[path]
    report = compare(("a", "b"), one, two)
    assert report.alone == (1, 0)
    assert report.total.shares[0] == pytest.approx(1)
    assert sum(block.shares[0] for block in report.blocks.values()) < 0.9


def test_nothing_in_common_is_a_mistake() -> None:
    with pytest.raises(AdapterError, match="in common"):
        compare(("a", "b"), adapter(), {"unet.x": adapter()[next(iter(SHAPES))]})


def test_overlap_is_the_mean_squared_cosine() -> None:
    angle = torch.tensor(0.3)
    one = torch.eye(4)[:, :2]
    turned = torch.stack([torch.cos(angle) * one[:, 0] + torch.sin(angle) * torch.eye(4)[:, 3],
                          torch.eye(4)[:, 2]], dim=1)  # fmt: skip
    assert overlap(one, turned) == pytest.approx(float(torch.cos(angle) ** 2) / 2, abs=1e-6)
    assert overlap(one, one) == pytest.approx(1)


def test_the_report_is_json_and_a_picture() -> None:
    report = compare(("a", "a rather long name for a style"), adapter(0), adapter(1))
    assert json.loads(json.dumps(report.to_json()))["total"]["cosine"] == report.total.cosine
    picture = heatmap.draw(report)
    assert picture.mode == "RGB"
    assert picture.width > 400
    colours = picture.getcolors(maxcolors=100_000)
    assert colours is not None
    assert len(colours) > 10
    assert picture.tobytes() == heatmap.draw(report).tobytes()
