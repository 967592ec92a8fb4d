"""Runs on everything that data can be: masks, prior, versions, long captions, warm and cold."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.trainer.training import runs
from tests.trainer.training.runs import same
from trainer import events
from trainer.errors import DatasetError
from trainer.run import Run, State
from trainer.training import prior
from trainer.training.attempt import attempt, check

LONG = ", ".join("abcdefghij" * 9)  # of three chunks
EVERYTHING = {
    "adapter__text_encoder": False,
    "dataset__class_prompt": "a thing",
    "dataset__class_images": 3,
    "dataset__max_tokens": 225,
    "dataset__masks": "alpha",
    "samples__prompts": (),
    "training__steps": 4,
    "training__checkpoint_every_steps": 1,
    "validation__every_steps": 4,
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two denoising steps, and a cache of the test's own."""
    monkeypatch.setattr(prior, "_STEPS", 2)
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def dataset(photos: Path, tmp_path: Path) -> Path:
    """The photos; one has a mask, one is half transparent, one has a long caption."""
    folder = shutil.copytree(photos, tmp_path / "dataset")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    mask.save(folder / "1-masklabel.png")
    clear = Image.new("RGBA", (64, 64), (200, 100, 0, 0))
    clear.paste((0, 100, 200, 255), (0, 0, 64, 32))
    clear.save(folder / "2.png")
    (folder / "4.txt").write_text(LONG)
    return folder


def new_run(folder: Path, base: Path, dataset: Path, **changes: Any) -> Run:
    return runs.new_run(folder, base, dataset, **(EVERYTHING | changes))


def encoded_at_start(run: Run) -> list[int]:
    """How many images were found in the cache, by attempt and kind."""
    said = [e for e in run.read_events()[0] if isinstance(e, events.Preparing)]
    return [
        event.done
        for before, event in zip([None, *said], said, strict=False)
        if event.stage.startswith("Encoding") and (before is None or before.stage != event.stage)
    ]


def test_warm_cold_and_in_memory_are_the_same_to_the_bit(
    small_base: Path, dataset: Path, tmp_path: Path
) -> None:
    cold, warm, memory = (
        new_run(tmp_path / "cold", small_base, dataset),
        new_run(tmp_path / "warm", small_base, dataset),
        new_run(tmp_path / "memory", small_base, dataset, dataset__cache="memory"),
    )
    assert [attempt(run) for run in (cold, warm, memory)] == [State.FINISHED] * 3
    assert same(cold, warm) and same(cold, memory)
    assert encoded_at_start(cold)[0] == 0 and encoded_at_start(warm)[0] == 8


def test_it_resumes_to_the_bit_with_its_cache_gone(
    small_base: Path, dataset: Path, tmp_path: Path
) -> None:
    whole, parted = (new_run(tmp_path / name, small_base, dataset) for name in ("whole", "parted"))
    attempt(whole)

    def stop(event: events.Event) -> None:
        if isinstance(event, events.CheckpointSaved) and event.step == 2:
            parted.request("stop")

    assert attempt(parted, stop) is State.STOPPED
    shutil.rmtree(tmp_path / "cache")
    assert attempt(parted) is State.FINISHED
    assert same(whole, parted)


def test_a_white_mask_is_no_mask_and_a_black_one_is_something_else(
    small_base: Path, photos: Path, tmp_path: Path
) -> None:
    made = []
    for name, shade in (("none", None), ("white", 255), ("half", 0)):
        folder = shutil.copytree(photos, tmp_path / f"images {name}")
        masks = tmp_path / f"masks {name}"
        masks.mkdir()
        for index in range(8) if shade is not None else ():
            mask = Image.new("L", Image.open(folder / f"{index}.png").size, 255)
            mask.paste(shade, (0, 0, 32, 32))
            mask.save(masks / f"{index}.png")
        run = new_run(
            tmp_path / name, small_base, folder, dataset__masks="files", dataset__class_prompt=None,
            dataset__mask_folder=masks if shade is not None else None, training__steps=2,
        )  # fmt: skip
        attempt(run)
        made.append(run)
    assert same(made[0], made[1]) and not same(made[0], made[2])


def test_folders_of_masks_and_of_the_class_are_checked_before_anything(
    small_base: Path, dataset: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.png").write_bytes(b"no image")
    for name in ("mask_folder", "class_folder"):
        run = new_run(tmp_path / name, small_base, dataset, **{f"dataset__{name}": tmp_path / "no"})
        with pytest.raises(DatasetError, match="no does not exist"):
            check(run.settings())
    run = new_run(tmp_path / "run", small_base, dataset, dataset__class_folder=tmp_path / "bad")
    with pytest.raises(DatasetError, match=r"1\.png is not an image"):
        check(run.settings())
    run = new_run(tmp_path / "same", small_base, dataset, dataset__class_folder=dataset)
    with pytest.raises(DatasetError, match="holds the dataset itself"):
        check(run.settings())


def test_regularisation_images_may_lie_in_the_dataset_and_are_told_apart(
    small_base: Path, dataset: Path, tmp_path: Path
) -> None:
    reg = shutil.copytree(dataset, dataset / "reg")
    (reg / "3.txt").unlink()
    without = {"dataset__class_folder": reg, "dataset__class_prompt": None}
    found = check(new_run(tmp_path / "run", small_base, dataset, **without).settings())
    assert len(found.examples) == 8
    assert "Of the regularisation images: Without a caption: 3.png." in found.notices
    found = check(new_run(tmp_path / "again", small_base, dataset,
                          dataset__class_folder=reg).settings())  # fmt: skip
    assert not any("Without" in notice for notice in found.notices)
