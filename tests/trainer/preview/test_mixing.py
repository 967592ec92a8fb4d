"""Which adapters act together at a step; and that the ways of mixing do what they promise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.adapters import random_adapter
from tests.images import apart
from trainer.adapter.attach import attach
from trainer.adapter.compose import combine
from trainer.model.load import load
from trainer.model.stable_diffusion import BaseModel
from trainer.preview import render as rendering
from trainer.preview.mixing import Mixing, Pass, passes
from trainer.preview.render import PartStrength, Picture, render
from trainer.preview.schedule import Schedule
from trainer.settings import Base

HALF = Schedule(end=0.5)


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> BaseModel:
    return load(Base(model=str(tiny_base), device="cpu"))


@pytest.fixture(scope="module")
def half_masks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The left half of a picture, and the right half."""
    folder = tmp_path_factory.mktemp("masks")
    files = (folder / "left.png", folder / "right.png")
    for file, at in zip(files, (0, 32), strict=True):
        mask = Image.new("L", (64, 64))
        mask.paste(255, (at, 0, at + 32, 64))
        mask.save(file)
    return files


def _drawn(
    model: BaseModel,
    strengths: Mapping[str, PartStrength],
    mixing: Mixing = "sum",
    switch_every: int = 5,
    strip: tuple[float, ...] = (1.0,),
) -> list[Image.Image]:
    picture = Picture("a cat", "blurry", 3, 4, 5.0, 64, 64, mixing=mixing,
                      switch_every=switch_every)  # fmt: skip
    adapters = {
        name: random_adapter(model.parts, seed=ord(name[0])) for name in strengths
    }  # "x" and "x2" are the same adapter
    with attach(model.parts, adapters) as attachment:
        return render(model, picture, attachment, strengths, strip)


def _names(mixing: Mixing, step: int, every: int = 5) -> list[tuple[tuple[str, ...], object]]:
    return [(one.adapters, one.weight) for one in passes(mixing, ("a", "b", "c"), {}, step, every)]


def test_which_adapters_act_together() -> None:
    assert _names("sum", 7) == [(("a", "b", "c"), 1.0)]
    assert [_names("switch", step, 2)[0][0] for step in range(8)] == [
        (name,) for name in "aabbccaa"
    ]
    assert _names("composite", 0) == [(("a",), 1 / 3), (("b",), 1 / 3), (("c",), 1 / 3)]
    assert passes("composite", (), {}, 0) == (Pass((), 1.0),)


def test_the_passes_of_regions_weigh_one_everywhere() -> None:
    left = torch.zeros(1, 1, 2, 2)
    left[..., 0] = 1
    soft = torch.full((1, 1, 2, 2), 0.25)
    for masks in ({"a": left}, {"a": left, "b": 1 - left}, {"a": soft, "b": left, "c": soft}):
        for mixing in ("sum", "switch", "composite"):
            found = passes(mixing, ("a", "b", "c"), masks, 0)  # type: ignore[arg-type]
            total = sum((one.weight for one in found), start=torch.zeros(1, 1, 2, 2))
            torch.testing.assert_close(total, torch.ones(1, 1, 2, 2))
    together = passes("sum", ("a", "b", "c"), {"a": soft, "c": soft}, 0)
    assert [one.adapters for one in together] == [("a", "b", "c"), ("b",)]
    whole = passes("sum", ("a", "b"), {"a": left, "b": 1 - left}, 0)
    assert len(whole) == 2  # no pass for a rest that is nowhere


def test_one_adapter_is_drawn_alike_by_all_ways(model: BaseModel) -> None:
    alone = _drawn(model, {"x": PartStrength()})[0]
    for mixing in ("switch", "composite"):
        assert apart(_drawn(model, {"x": PartStrength()}, mixing)[0], alone) == 0  # type: ignore[arg-type]


def test_composite_of_the_same_adapter_twice_is_that_adapter(model: BaseModel) -> None:
    alone = _drawn(model, {"x": PartStrength(1, 0)})[0]
    twice = {"x": PartStrength(1, 0), "x2": PartStrength(1, 0)}
    assert apart(_drawn(model, twice, "composite")[0], alone) <= 1
    assert apart(_drawn(model, twice, "sum")[0], alone) > 5


def test_switching_in_the_middle_is_one_and_then_the_other(model: BaseModel) -> None:
    both = {"x": PartStrength(1, 0), "y": PartStrength(1, 0)}
    switched = _drawn(model, both, "switch", switch_every=2)[0]
    late = Schedule(begin=0.5)
    by_schedule = {"x": PartStrength(1, 0, HALF), "y": PartStrength(1, 0, late)}
    assert apart(switched, _drawn(model, by_schedule)[0]) == 0


def test_a_combination_draws_what_its_parts_draw_live(
    model: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "to_image", lambda pixels: pixels)  # not rounded to 1/255
    weights = {"x": 0.8, "y": -0.5, "z": 1.5}
    adapters = {name: random_adapter(model.parts, seed=ord(name)) for name in weights}
    picture = Picture("a cat", "blurry", 3, 4, 5.0, 64, 64)
    with attach(model.parts, adapters) as attachment:
        strengths = {name: PartStrength(weight, weight) for name, weight in weights.items()}
        (live,) = render(model, picture, attachment, strengths)
    mix = combine([(adapters[name], weight) for name, weight in weights.items()])
    with attach(model.parts, {"mix": mix}) as attachment:
        (mixed,) = render(model, picture, attachment, {"mix": PartStrength()})
    (plain,) = render(model, picture)
    assert isinstance(live, torch.Tensor)
    assert float((live - mixed).abs().max()) < 1e-4
    assert float((live - plain).abs().max()) > 0.05


def test_constant_is_static_and_other_schedules_are_not(model: BaseModel) -> None:
    static = _drawn(model, {"x": PartStrength(0.8, 0.3)})[0]
    same = Schedule(begin=0, end=1, first=1, last=1)
    assert apart(_drawn(model, {"x": PartStrength(0.8, 0.3, same)})[0], static) == 0
    early = _drawn(model, {"x": PartStrength(0.8, 0.3, HALF)}, strip=(0.0, 0.5, 1.0))
    assert apart(early[2], static) > 3
    off = _drawn(model, {"x": PartStrength(0.8, 0.3)}, strip=(0.0,))[0]
    assert apart(early[0], off) <= 1
    alone = _drawn(model, {"x": PartStrength(0.8, 0.3, HALF)}, strip=(0.5,))[0]
    assert apart(early[1], alone) <= 1


def test_a_white_mask_is_none_and_halves_make_a_whole(
    model: BaseModel, half_masks: tuple[Path, Path], tmp_path: Path
) -> None:
    white = tmp_path / "white.png"
    Image.new("RGB", (100, 50), "white").save(white)
    plain = _drawn(model, {"x": PartStrength()})[0]
    assert apart(_drawn(model, {"x": PartStrength(mask=white)})[0], plain) == 0
    left, right = half_masks
    halves = {"x": PartStrength(1, 0.5, mask=left), "x2": PartStrength(1, 0.5, mask=right)}
    assert apart(_drawn(model, halves)[0], plain) <= 1


def test_a_black_mask_is_no_adapter_and_half_a_mask_something_between(
    model: BaseModel, half_masks: tuple[Path, Path], tmp_path: Path
) -> None:
    black = tmp_path / "black.png"
    Image.new("L", (64, 64)).save(black)
    none = _drawn(model, {"x": PartStrength(0, 0)})[0]
    plain = _drawn(model, {"x": PartStrength(1, 0)})[0]
    assert apart(_drawn(model, {"x": PartStrength(1, 0, mask=black)})[0], none) == 0
    half = _drawn(model, {"x": PartStrength(1, 0, mask=half_masks[0])})[0]
    assert apart(half, none) > 3
    assert apart(half, plain) > 3
