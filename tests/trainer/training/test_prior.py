"""Regularisation images: from a folder, or drawn once by the base."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.trainer.training.runs import new_run, tensors
from trainer import events
from trainer.model.load import load
from trainer.model.stable_diffusion import BaseModel
from trainer.preview.render import Picture, render
from trainer.run import State
from trainer.settings import Base, Dataset, Settings
from trainer.training import prior
from trainer.training.attempt import attempt


@pytest.fixture(scope="module")
def model(small_base: Path) -> BaseModel:
    return load(Base(model=str(small_base), device="cpu"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two denoising steps, and a cache of the test's own."""
    monkeypatch.setattr(prior, "_STEPS", 2)
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "cache"))


def wanted(**changes: object) -> Settings:
    values: dict[str, object] = {"class_prompt": "a cat", "class_images": 3, "resolution": 64}
    return Settings(dataset=Dataset(**values | changes))  # type: ignore[arg-type]


def test_images_are_drawn_by_the_base_and_found_again(model: BaseModel) -> None:
    said: list[tuple[int, int]] = []
    first = prior.examples(model, wanted(), lambda stage, *done: said.append(done))
    assert said == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert [example.caption for example in first] == ["a cat"] * 3
    expected = render(model, Picture("a cat", seed=1, steps=2, width=64, height=64))[0]
    assert np.array_equal(np.asarray(Image.open(first[1].image)), np.asarray(expected))
    said.clear()
    assert prior.examples(model, wanted(), lambda stage, *done: said.append(done)) == first
    assert said == [(3, 3)]


def test_more_are_added_and_lost_ones_drawn_again_alike(model: BaseModel) -> None:
    first = prior.examples(model, wanted(), lambda *said: None)
    first[2].image.unlink()
    more = prior.examples(model, wanted(class_images=4), lambda *said: None)
    assert more[:3] == first and len(more) == 4
    assert prior.examples(model, wanted(), lambda *said: None) == first


@pytest.mark.parametrize("changed", [{"class_prompt": "a dog"}, {"resolution": 96}])
def test_other_images_for_other_settings(model: BaseModel, changed: dict[str, object]) -> None:
    first = prior.examples(model, wanted(), lambda *said: None)
    other = prior.examples(model, wanted(**changed), lambda *said: None)
    assert first[0].image.parent != other[0].image.parent


def test_a_folder_comes_before_drawing_and_its_captions_before_the_prompt(
    model: BaseModel, photos: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text("a tabby cat")
    found = prior.examples(model, wanted(class_folder=tmp_path), lambda *said: None)
    assert [example.caption for example in found] == ["a cat", "a tabby cat"]


def test_nothing_asked_for_gives_none(model: BaseModel) -> None:
    assert prior.examples(model, wanted(class_prompt=None), lambda *said: None) == ()


def test_a_run_learns_from_them_by_their_weight(
    small_base: Path, photos: Path, tmp_path: Path
) -> None:
    """Three runs whose only difference is the prior: none, drawn, drawn and weighed more."""
    settings = {
        "training__steps": 2,
        "samples__prompts": (),
        "dataset__class_images": 2,
        "adapter__text_encoder": False,
    }
    drawn = {"dataset__class_prompt": "a thing", **settings}
    results = []
    for name, changes in (("none", settings), ("drawn", drawn),
                          ("more", {**drawn, "loss__prior_weight": 5.0})):  # fmt: skip
        run = new_run(tmp_path / name, small_base, photos, **changes)
        assert attempt(run) is State.FINISHED
        results.append(tensors(run))
        stages = {e.stage for e in run.read_events()[0] if isinstance(e, events.Preparing)}
        assert ("Drawing regularisation images" in stages) == (name != "none")
    none, some, more = (
        np.concatenate([t.numpy().ravel() for _, t in sorted(result.items())]) for result in results
    )
    assert not np.array_equal(none, some) and not np.array_equal(some, more)
