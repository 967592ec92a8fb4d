"""Attaching, setting and detaching, on a tiny SD 1.5 UNet and text encoder."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from trainer import settings
from trainer.adapter.attach import Attachment, attach, attach_new, read_back, select
from trainer.adapter.factors import Adapter, LowRank
from trainer.adapter.kinds import Layer
from trainer.errors import AdapterError, UserError

PATH = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def parts() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"unet": tiny.unet().eval(), "text_encoder": tiny.text_encoder().eval()}


@torch.no_grad()
def _output(parts: dict[str, nn.Module], images: int = 2) -> Tensor:
    draws = torch.Generator().manual_seed(5)
    noisy = torch.randn((images, 4, 8, 8), generator=draws)
    text = parts["text_encoder"](torch.arange(2, 12).expand(images, -1))[0]
    return parts["unet"](noisy, torch.tensor(500), text).sample  # type: ignore[no-any-return]


def _trained(parts: dict[str, nn.Module], seed: int) -> Adapter:
    draws = torch.Generator().manual_seed(seed)
    with attach_new(parts, settings.Adapter(rank=3, alpha=6), draws) as attachment:
        for layer in attachment.layers.values():
            layer.up.data.normal_(0, 0.3, generator=draws)
        return _plain(read_back(attachment))


def _plain(adapter: Mapping[str, Layer]) -> Adapter:
    return {path: layer for path, layer in adapter.items() if isinstance(layer, LowRank)}


def test_attention_means_every_projection_of_attention(parts: dict[str, nn.Module]) -> None:
    # SD 1.5 has 16 transformer blocks, each with two attentions of four projections.
    paths = select(parts, "attention")
    assert sum(path.startswith("unet.") for path in paths) == 16 * 2 * 4
    assert sum(path.startswith("text_encoder.text_model.encoder.") for path in paths) == 2 * 4


def test_wider_targets_contain_the_narrower(parts: dict[str, nn.Module]) -> None:
    chosen = [
        set(select(parts, targets))
        for targets in ("attention", "attention-ff", "linear", "linear-conv")
    ]
    assert all(narrow < wide for narrow, wide in itertools.pairwise(chosen))


def test_a_part_without_targets_is_refused() -> None:
    with pytest.raises(UserError, match="matches no layer of the unet"):
        select({"unet": nn.Sequential(nn.Linear(2, 2))}, "attention")


def test_new_then_detached_is_the_base_bit_for_bit(parts: dict[str, nn.Module]) -> None:
    before = _output(parts)
    modules = {name: list(part.modules()) for name, part in parts.items()}
    wanted = settings.Adapter(targets="linear-conv", rank=4, alpha=4)
    attachment = attach_new(parts, wanted, torch.Generator().manual_seed(0))
    assert torch.equal(_output(parts), before)
    attachment.detach()
    assert torch.equal(_output(parts), before)
    assert {name: list(part.modules()) for name, part in parts.items()} == modules


def test_strength_zero_is_the_base_bit_for_bit(parts: dict[str, nn.Module]) -> None:
    before = _output(parts)
    with attach(parts, {"a": _trained(parts, 1)}) as attachment:
        assert not torch.equal(_output(parts), before)
        attachment.set({"a": 0.0})
        assert torch.equal(_output(parts), before)


def test_attached_equals_weights_changed_by_hand(parts: dict[str, nn.Module]) -> None:
    first, second = _trained(parts, 1), _trained(parts, 2)
    with attach(parts, {"a": first, "b": second}) as attachment:
        attachment.set({"a": 0.7, "b": -0.4})
        live = _output(parts)
    places = select(parts, "attention")
    kept = {path: slot.layer.weight.detach().clone() for path, slot in places.items()}
    for path, slot in places.items():
        for weight, adapter in ((0.7, first), (-0.4, second)):
            factor = adapter[path]
            slot.layer.weight.data += weight * factor.scale * factor.up @ factor.down
    by_hand = _output(parts)
    for path, slot in places.items():
        slot.layer.weight.data.copy_(kept[path])
    torch.testing.assert_close(live, by_hand, rtol=1e-4, atol=1e-5)


def test_strengths_per_image_part_and_block(parts: dict[str, nn.Module]) -> None:
    adapter = _trained(parts, 1)
    with attach(parts, {"a": adapter}) as attachment:
        attachment.set({"a": torch.tensor([0.0, 0.9])})
        strip = _output(parts)
        for index, strength in enumerate((0.0, 0.9)):
            attachment.set({"a": strength})
            torch.testing.assert_close(_output(parts)[index], strip[index], rtol=1e-4, atol=1e-5)
        attachment.set({"a": lambda path: float(path.startswith("text_encoder."))})
        only_text = _output(parts)
    text_only = {path: factor for path, factor in adapter.items() if path.startswith("text_")}
    with attach(parts, {"a": text_only}):
        assert torch.equal(_output(parts), only_text)


def test_a_misfit_leaves_the_model_as_it_was(parts: dict[str, nn.Module]) -> None:
    before = _output(parts)
    good = _trained(parts, 1)
    wrong_shape = {**good, PATH: LowRank(torch.zeros(3, 5), torch.zeros(32, 3), 3.0)}
    wrong_place = {**good, "unet.nowhere.to_q": good[PATH]}
    for bad in (wrong_shape, wrong_place):
        with pytest.raises(AdapterError, match="The adapter is made for"):
            attach(parts, {"good": good, "bad": bad})
        assert torch.equal(_output(parts), before)


def test_an_unknown_name_is_an_error(parts: dict[str, nn.Module]) -> None:
    with attach(parts, {"a": _trained(parts, 1)}) as attachment, pytest.raises(KeyError, match="b"):
        attachment.set({"b": 1.0})


def test_reading_back_gives_what_was_attached(parts: dict[str, nn.Module]) -> None:
    adapter = _trained(parts, 1)
    attachment: Attachment
    with attach(parts, {"a": adapter}) as attachment:
        again = _plain(read_back(attachment))
    assert again.keys() == adapter.keys()
    for path, factor in adapter.items():
        assert torch.equal(again[path].down, factor.down)
        assert torch.equal(again[path].up, factor.up)
