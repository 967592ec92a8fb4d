"""Batches: pure functions of the step, with everything random in play."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from trainer.data.batches import Batch, Batches, sizes_of
from trainer.data.dataset import scan
from trainer.data.latents import Encoded, Encoder
from trainer.data.store import DiskStore
from trainer.model.load import load
from trainer.model.stable_diffusion import BaseModel
from trainer.settings import Base, Dataset, Loss, Settings, Training

DATASET = Dataset(
    resolution=64,
    caption_dropout=0.2,
    shuffle_tags=True,
    tag_dropout=0.2,
    flip=True,
    random_crop=0.2,
    color_jitter=0.2,
    versions=3,
)
WANTED = Settings(
    dataset=DATASET,
    training=Training(batch_size=2, gradient_accumulation=2, seed=5),
    loss=Loss(prior_weight=0.5),
)


@pytest.fixture(scope="module")
def model(small_base: Path) -> BaseModel:
    return load(Base(model=str(small_base), device="cpu"))


@pytest.fixture(scope="module")
def images(
    model: BaseModel, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Encoded]:
    """The photos, in two buckets, with captions of three tags and different repeats."""
    encoder = Encoder(model, DATASET, DiskStore(tmp_path_factory.mktemp("latents")))
    examples = scan(photos).examples
    sizes = sizes_of(examples, DATASET.resolution)
    encoder.encode(examples, sizes, lambda done: None)
    return [
        Encoded(replace(example, repeats=1 + n % 3), f"a, b{n}, c", size, encoder)
        for n, (example, size) in enumerate(zip(examples, sizes, strict=True))
    ]


def same(one: Batch, other: Batch) -> bool:
    return (
        torch.equal(one.latents, other.latents)
        and (one.captions, one.files, one.weight) == (other.captions, other.files, other.weight)
        and (one.mask is None) == (other.mask is None)
        and (one.mask is None or other.mask is None or torch.equal(one.mask, other.mask))
    )


def test_a_batch_does_not_depend_on_what_was_asked_before(images: list[Encoded]) -> None:
    """In order, backwards, by strides as several ranks ask, and after a resume."""
    places = [(step, micro) for step in range(6) for micro in range(2)]
    in_order = Batches(images, WANTED)
    expected = {place: in_order.batch(*place) for place in places}
    for asked in (reversed(places), places[1::2], places[7:], [(3, 1), (3, 1), (0, 0), (5, 1)]):
        batches = Batches(images, WANTED)
        assert all(same(batches.batch(*place), expected[place]) for place in asked)


def test_steps_see_different_versions_and_captions(images: list[Encoded]) -> None:
    batches = Batches(images, WANTED)
    seen = [batches.batch(step, 0) for step in range(40)]
    assert len({caption for batch in seen for caption in batch.captions}) > 10
    versions = Counter(
        (file.name, one.numpy().tobytes())
        for batch in seen
        for file, one in zip(batch.files, batch.latents, strict=True)
    )
    of_each = Counter(name for name, _ in versions)
    assert max(of_each.values()) <= 6  # three versions, and their mirror images
    assert sum(of_each.values()) > 2 * len(of_each)


def test_nothing_is_mirrored_unless_asked(images: list[Encoded]) -> None:
    plain = WANTED.model_copy(update={"dataset": Dataset(resolution=64)})
    encoder = Encoder(images[0].encoder.model, plain.dataset, images[0].encoder.store)
    batches = Batches([replace(image, encoder=encoder) for image in images], plain)
    for step in range(20):
        batch = batches.batch(step, 1)
        for file, latents in zip(batch.files, batch.latents, strict=True):
            (image,) = (one for one in images if one.file == file)
            assert torch.equal(latents, image.latents)
            assert batch.mask is None and batch.weight == 1


def test_regularisation_images_have_passes_of_their_own(images: list[Encoded]) -> None:
    own, prior = images[:5], images[5:]
    batches = Batches(own, WANTED, prior)
    assert batches.passes == 4
    for step in range(5):
        passes = [batches.batch(step, micro) for micro in range(4)]
        assert [batch.weight for batch in passes] == [1, 1, 0.5, 0.5]
        for batch, among in zip(passes, (own, own, prior, prior), strict=True):
            assert set(batch.files) <= {image.file for image in among}
        alone = Batches(own, WANTED)
        assert all(same(alone.batch(step, micro), passes[micro]) for micro in range(2))


def test_a_lost_entry_changes_no_batch(images: list[Encoded], tmp_path: Path) -> None:
    """Another store, which has nothing yet: everything is encoded when it is needed."""
    encoder = Encoder(images[0].encoder.model, DATASET, DiskStore(tmp_path))
    bare = [replace(image, encoder=encoder) for image in images]
    ours, theirs = Batches(bare, WANTED), Batches(images, WANTED)
    assert all(same(ours.batch(step, 0), theirs.batch(step, 0)) for step in range(4))


def test_images_without_a_mask_count_in_full(model: BaseModel, tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (64, 64), "teal").save(tmp_path / f"{name}.png")
    Image.new("L", (64, 64), 51).save(tmp_path / "a-masklabel.png")
    wanted = Settings(dataset=Dataset(resolution=64), training=Training(batch_size=2))
    encoder = Encoder(model, wanted.dataset, DiskStore(tmp_path / "cache"))
    examples = scan(tmp_path).examples
    sizes = sizes_of(examples, 64)
    encoded = [Encoded(e, "", size, encoder) for e, size in zip(examples, sizes, strict=True)]
    batch = Batches(encoded, wanted).batch(0, 0)
    assert batch.mask is not None and batch.mask.shape == (2, 8, 8)
    for file, mask in zip(batch.files, batch.mask, strict=True):
        assert torch.allclose(mask, torch.full((8, 8), 0.2 if file.name == "a.png" else 1.0))
