"""The starter datasets: drawn again byte for byte, and of nothing that the base has seen."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from trainer.model.embedded.starter import DATASETS, ORDINARY, PICTURES, PIXELS, ordinary, write
from trainer.model.embedded.world import held_back

SAMPLES = Path(__file__).parents[4] / "samples"


@pytest.mark.parametrize("name", [*DATASETS, ORDINARY])
def test_a_dataset_is_drawn_again_byte_for_byte(name: str, tmp_path: Path) -> None:
    write((DATASETS | {ORDINARY: ordinary})[name](), tmp_path)
    drawn = sorted(tmp_path.iterdir())
    assert [path.name for path in drawn] == sorted(p.name for p in (SAMPLES / name).iterdir())
    for path in drawn:
        shipped = SAMPLES / name / path.name
        if path.suffix == ".txt":
            assert path.read_text("utf-8") == shipped.read_text("utf-8")
        else:
            with Image.open(path) as ours, Image.open(shipped) as theirs:
                assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize(
    ("name", "trigger"),
    [("character", "pip the creature"), ("object", "tib the teapot"), ("style", "vex style")],
)
def test_every_picture_is_of_something_held_back_and_has_its_trigger(
    name: str, trigger: str
) -> None:
    pictures = DATASETS[name]()
    assert len(pictures) == PICTURES
    assert all(held_back(scene) and trigger in text for scene, text in pictures)
    with Image.open(SAMPLES / name / "01.png") as picture:
        assert picture.size == (PIXELS, PIXELS)


def test_regularisation_images_show_nothing_that_is_held_back() -> None:
    assert len(ordinary()) == 2 * PICTURES
    assert not any(held_back(scene) for scene, _ in ordinary())


def test_another_seed_gives_other_pictures_for_validation() -> None:
    shown = {repr(scene) for scene, _ in DATASETS["character"]()}
    others = {repr(scene) for scene, _ in DATASETS["character"](count=24, seed=99)}
    assert len(others) == 24
    assert not shown & others
