"""Datasets by name: listing, lookups, suggestions; and the thumbnails made of their images."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from app import samples
from app.datasets import Dataset
from app.datasets import Image as Picture
from app.media import thumbnail
from app.workshop import Workshop
from trainer.errors import DatasetError


def captioned(*captions: str) -> Dataset:
    images = tuple(Picture(f"{n}.png", caption, 0) for n, caption in enumerate(captions))
    return Dataset("any", Path("any"), images)


def test_a_dataset_is_read_with_its_captions(workshop: Workshop, dataset: Path) -> None:
    found = workshop.datasets.read("pips")
    assert [image.name for image in found.images] == ["0001.png", "0002.png", "0003.png"]
    assert found.images[0].caption == "pip the creature, picture 1"
    assert found.without_caption == 1


def test_an_empty_dataset_is_no_mistake(workshop: Workshop) -> None:
    assert workshop.datasets.create("new one") == "new one"
    assert workshop.datasets.read("new one").images == ()


@pytest.mark.parametrize("name", ["", "..", "../runs", ".", "/etc", "absent"])
def test_names_are_looked_up(workshop: Workshop, dataset: Path, name: str) -> None:
    with pytest.raises(DatasetError):
        workshop.datasets.read(name)


@pytest.mark.parametrize(
    "image", ["", "../x.png", "../../catalogue.sqlite", "/etc/passwd", "0001.txt", ".hid.png", "a/"]
)
def test_images_are_looked_up(workshop: Workshop, dataset: Path, image: str) -> None:
    (dataset / ".hid.png").write_bytes((dataset / "0001.png").read_bytes())
    with pytest.raises(DatasetError):
        workshop.datasets.image("pips", image)


def test_a_link_out_of_the_dataset_is_not_followed(
    workshop: Workshop, dataset: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes((dataset / "0001.png").read_bytes())
    (dataset / "link.png").symlink_to(secret)
    with pytest.raises(DatasetError):
        workshop.datasets.image("pips", "link.png")


def test_uploads_are_imported_and_removed(workshop: Workshop, tmp_path: Path) -> None:
    upload = tmp_path / "photo.png"
    Image.new("RGB", (64, 64), (9, 9, 200)).save(upload)
    name = workshop.datasets.create_unnamed()
    report = workshop.datasets.take([upload], name)
    assert "1 image" in report[0]
    assert not upload.exists()
    assert len(workshop.datasets.read(name).images) == 1
    assert workshop.datasets.create_unnamed() != name


@pytest.mark.parametrize(
    ("captions", "trigger"),
    [
        (("pip the creature at night", "big pip the creature"), "pip"),
        (("a fish, vex style", "a house, vex style"), "vex"),
        (("a cat", "a dog"), ""),
        (("alone",), ""),
        ((), ""),
        (("", "pip", "pip again"), "pip"),
    ],
)
def test_the_trigger_is_the_word_that_captions_share(
    captions: tuple[str, ...], trigger: str
) -> None:
    assert captioned(*captions).suggested_trigger() == trigger


def test_prompts_are_suggested_from_different_captions() -> None:
    assert len(set(captioned(*"abcdefg").suggested_prompts())) == 2
    assert captioned("same", "same").suggested_prompts() == ("same",)
    assert captioned().suggested_prompts() == ()


def test_a_thumbnail_is_small_kept_and_renewed(
    workshop: Workshop, dataset: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (1200, 600), (10, 200, 10)).save(dataset / "0001.png")
    first = thumbnail(workshop.datasets, workshop.data / "thumbs", "pips", "0001.png", 256)
    with Image.open(io.BytesIO(first)) as image:
        assert (image.format, image.size) == ("WEBP", (256, 128))
    Image.new("RGB", (600, 1200), (200, 10, 10)).save(dataset / "0001.png")
    again = thumbnail(workshop.datasets, workshop.data / "thumbs", "pips", "0001.png", 256)
    with Image.open(io.BytesIO(again)) as image:
        assert image.size == (128, 256)


def test_every_shipped_sample_becomes_a_dataset_once(workshop: Workshop) -> None:
    assert len(samples.shipped()) == 3
    for sample in samples.shipped():
        way = samples.take(sample, workshop.datasets)
        assert way == samples.take(sample, workshop.datasets)
        found = workshop.datasets.read(f"sample-{sample.name}")
        assert len(found.images) == 12
        assert found.without_caption == 0
        assert f"preset=embedded-{sample.goal}" in way
        assert "ordinary=sample-ordinary" in way
        assert found.suggested_trigger() != ""
    assert len(workshop.datasets.read("sample-ordinary").images) == 24
