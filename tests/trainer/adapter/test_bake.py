"""A baked base draws what the live adapter draws, and the old base is not touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adapters import random_adapter
from tests.images import apart
from trainer.adapter.attach import attach
from trainer.adapter.bake import bake
from trainer.adapter.factors import LowRank
from trainer.errors import AdapterError, UserError
from trainer.model.load import load
from trainer.preview.render import PartStrength, Picture, render
from trainer.settings import Base

PICTURE = Picture("a cat", seed=2, steps=3, guidance=4.0, width=64, height=64)


def test_baked_equals_live(small_base: Path, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in small_base.rglob("*") if file.is_file()}
    model = load(Base(model=str(small_base), device="cpu"))
    adapter = random_adapter(model.parts)
    with attach(model.parts, {"x": adapter}) as attachment:
        live = render(model, PICTURE, attachment, {"x": PartStrength()})[0]
    report = bake(small_base, adapter, tmp_path / "baked")
    assert report.gain == pytest.approx(1, abs=1e-5)
    baked = render(load(Base(model=str(tmp_path / "baked"), device="cpu")), PICTURE)[0]
    plain = render(model, PICTURE)[0]
    assert apart(live, baked) <= 1
    assert apart(plain, baked) > 5
    assert {file: file.read_bytes() for file in small_base.rglob("*") if file.is_file()} == before


def test_a_misfit_or_a_taken_folder_leaves_nothing(small_base: Path, tmp_path: Path) -> None:
    model = load(Base(model=str(small_base), device="cpu"))
    adapter = random_adapter(model.parts)
    with pytest.raises(UserError, match="exists already"):
        bake(small_base, adapter, tmp_path)
    foreign = {"unet.nowhere": LowRank(*next(iter(adapter.values())).__dict__.values())}
    with pytest.raises(AdapterError, match="another base"):
        bake(small_base, foreign, tmp_path / "new")
    assert not list(tmp_path.iterdir())
