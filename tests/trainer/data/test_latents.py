"""Latents by content: encoded once, never stale, made again where they are lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps

from tests import pictures
from trainer.data.buckets import Size
from trainer.data.dataset import Example, scan
from trainer.data.images import open_image
from trainer.data.latents import Encoder, fit, to_tensor
from trainer.data.store import DiskStore, MemoryStore
from trainer.data.versions import Version
from trainer.errors import DatasetError
from trainer.model.load import load
from trainer.model.stable_diffusion import BaseModel, StableDiffusion
from trainer.settings import Base, Dataset

SIZE = Size(64, 64)


@pytest.fixture(scope="module")
def model(small_base: Path) -> BaseModel:
    return load(Base(model=str(small_base), device="cpu"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A picture with its mask, and one that is half transparent."""
    folder = tmp_path / "images"
    folder.mkdir()
    pictures.quadrants(width=80, height=64).save(folder / "a.png")
    mask = Image.new("L", (80, 64))
    mask.paste(255, (0, 0, 40, 64))
    mask.save(folder / "a-masklabel.png")
    clear = pictures.quadrants(width=64, height=64).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize((64, 64)))
    clear.save(folder / "b.png")
    return folder


@dataclass
class Counting:
    """A model that counts what it encodes."""

    model: BaseModel
    encoded: list[torch.Tensor] = field(default_factory=list)

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        self.encoded.append(images)
        return self.model.encode_images(images)

    def __getattr__(self, name: str) -> object:
        return getattr(self.model, name)


def encode(
    folder: Path, model: object, cache: Path, size: Size = SIZE, **wanted: object
) -> tuple[Encoder, list[Example], int]:
    """An encoder that has encoded a folder, its examples, and how many encodings that took."""
    counting = Counting(model)  # type: ignore[arg-type]
    encoder = Encoder(counting, Dataset(**wanted), DiskStore(cache))  # type: ignore[arg-type]
    examples = list(scan(folder).examples)
    said: list[int] = []
    encoder.encode(examples, [size] * len(examples), said.append)
    assert said[-1] == len(examples) and said == sorted(said)
    return encoder, examples, len(counting.encoded)


def test_latents_are_those_of_the_fitted_image(model: BaseModel, folder: Path) -> None:
    encoder = Encoder(model, Dataset(), MemoryStore())
    example = scan(folder).examples[0]
    image = fit(open_image(example.image), SIZE)
    expected = model.encode_images(to_tensor(image)[None])[0]
    assert torch.equal(encoder.latents(example, SIZE, Version()).latents, expected)
    mirrored = model.encode_images(to_tensor(ImageOps.mirror(image))[None])[0]
    assert torch.equal(encoder.latents(example, SIZE, Version(mirrored=True)).latents, mirrored)


def test_fitting_crops_at_the_centre(folder: Path) -> None:
    """A wide image loses as much left as right, as Pillow's own fitting does."""
    wide = pictures.quadrants(width=300, height=100)
    ours = to_tensor(fit(wide, SIZE))
    theirs = to_tensor(ImageOps.fit(wide, SIZE, Image.Resampling.LANCZOS))
    assert (ours - theirs).abs().max() < 0.02


def test_a_second_run_encodes_nothing(model: BaseModel, folder: Path, tmp_path: Path) -> None:
    augmented = {"flip": True, "random_crop": 0.1, "versions": 3}
    first, examples, encodings = encode(folder, model, tmp_path / "cache", **augmented)
    assert encodings == 2 * 3 * 2
    second, _, encodings = encode(folder, model, tmp_path / "cache", **augmented)
    assert encodings == 0
    for version in (Version(), first.version(examples[0], 2, True)):
        pair = [e.latents(examples[0], SIZE, version) for e in (first, second)]
        assert torch.equal(pair[0].latents, pair[1].latents)


def _edit_image(folder: Path) -> None:
    pictures.quadrants(width=80, height=64).rotate(180).save(folder / "a.png")


def _edit_mask(folder: Path) -> None:
    Image.new("L", (80, 64), 200).save(folder / "a-masklabel.png")


def _remove_mask(folder: Path) -> None:
    (folder / "a-masklabel.png").unlink()


@pytest.mark.parametrize("edit", [_edit_image, _edit_mask, _remove_mask])
def test_what_was_edited_is_encoded_again(
    edit: Callable[[Path], None], model: BaseModel, folder: Path, tmp_path: Path
) -> None:
    encode(folder, model, tmp_path / "cache")
    edit(folder)
    _, _, encodings = encode(folder, model, tmp_path / "cache")
    assert encodings == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"size": Size(72, 56)},
        {"masks": "off"},
        {"masks": "alpha"},
        {"background": "#102030"},
        {"flip": True},
        {"color_jitter": 0.1},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_other_settings_never_meet_earlier_latents(
    changed: dict[str, object], model: BaseModel, folder: Path, tmp_path: Path
) -> None:
    encode(folder, model, tmp_path / "cache")
    _, _, encodings = encode(folder, model, tmp_path / "cache", **changed)  # type: ignore[arg-type]
    assert encodings > 0


def test_another_vae_never_meets_earlier_latents(
    model: BaseModel, folder: Path, tmp_path: Path
) -> None:
    assert isinstance(model, StableDiffusion)
    encode(folder, model, tmp_path / "cache")
    vae = type(model.vae).from_config(model.vae.config)
    vae.load_state_dict(model.vae.state_dict())
    with torch.no_grad():
        next(vae.parameters()).view(-1)[0] += 1e-3
    _, _, encodings = encode(folder, replace(model, vae=vae), tmp_path / "cache")
    assert encodings == 2
    same = replace(model, vae=model.vae)
    assert encode(folder, same, tmp_path / "cache")[2] == 0


def test_a_renamed_or_copied_image_is_found_by_its_content(
    model: BaseModel, folder: Path, tmp_path: Path
) -> None:
    encode(folder, model, tmp_path / "cache")
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere")
    (elsewhere / "b.png").rename(elsewhere / "c.png")
    assert encode(elsewhere, model, tmp_path / "cache")[2] == 0


def test_a_lost_or_broken_entry_is_made_again(
    model: BaseModel, folder: Path, tmp_path: Path
) -> None:
    encoder, examples, _ = encode(folder, model, tmp_path / "cache")
    before = [encoder.latents(e, SIZE, Version()) for e in examples]
    files = sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file())
    files[0].write_bytes(files[0].read_bytes()[:-1])
    files[1].unlink()
    for example, expected in zip(examples, before, strict=True):
        assert torch.equal(encoder.latents(example, SIZE, Version()).latents, expected.latents)
    assert all(encoder.find(example, SIZE, Version()) for example in examples)


def test_an_image_that_changes_under_the_run_is_named(model: BaseModel, folder: Path) -> None:
    encoder = Encoder(model, Dataset(), MemoryStore())
    example = scan(folder).examples[0]
    _edit_image(folder)
    with pytest.raises(DatasetError, match=r"a\.png has changed since this run began"):
        encoder.latents(example, SIZE, Version())
    example.image.unlink()
    with pytest.raises(DatasetError, match=r"a\.png cannot be read"):
        encoder.latents(example, SIZE, Version())


def test_masks_are_at_the_size_of_latents(model: BaseModel, folder: Path) -> None:
    masked, clear = scan(folder).examples
    files = Encoder(model, Dataset(), MemoryStore())
    mask = files.latents(masked, SIZE, Version()).mask
    assert mask is not None and mask.shape == (8, 8)
    assert (mask[:, :4] == 1).all() and (mask[:, 4:] == 0).all()
    assert files.latents(clear, SIZE, Version()).mask is None
    by_alpha = Encoder(model, Dataset(masks="alpha"), MemoryStore())
    alpha = by_alpha.latents(clear, SIZE, Version()).mask
    assert alpha is not None and alpha[0].max() < 0.1 and alpha[-1].min() > 0.9
    beside = by_alpha.latents(masked, SIZE, Version()).mask
    assert beside is not None and torch.equal(beside, mask)
    off = Encoder(model, Dataset(masks="off"), MemoryStore())
    assert off.latents(masked, SIZE, Version()).mask is None


def test_the_background_shows_through_transparency(model: BaseModel, folder: Path) -> None:
    counting = Counting(model)
    encoder = Encoder(counting, Dataset(background="#ff0000"), MemoryStore())  # type: ignore[arg-type]
    encoder.latents(scan(folder).examples[1], SIZE, Version())
    top = counting.encoded[0][0, :, 0, :].mean(1)  # the wholly transparent row
    assert top[0] > 0.95 and top[1:].max() < -0.9
