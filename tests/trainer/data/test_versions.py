"""Versions of an image: crops inside it, its mask with it, and nothing that was not asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tests import pictures
from trainer.data import versions
from trainer.data.buckets import Size, crop_box
from trainer.data.versions import Version, version
from trainer.settings import Dataset

DIGEST = "0123456789abcdef" * 4
EVERYTHING = Dataset(random_crop=0.2, color_jitter=0.3)


def test_the_first_version_is_the_image_as_it_is() -> None:
    assert version(EVERYTHING, DIGEST, 0, False) == Version()


def test_without_augmentation_there_is_one_version() -> None:
    assert versions.count(Dataset()) == 1
    assert versions.count(Dataset(random_crop=0)) == 8
    assert versions.count(Dataset(color_jitter=0.1, versions=3)) == 3


@given(
    st.integers(1, 63), st.floats(0, 0.5), st.integers(8, 900), st.integers(8, 900),
    st.sampled_from([Size(64, 64), Size(96, 40), Size(48, 80)]),
)  # fmt: skip
def test_crops_lie_inside_and_keep_the_shape(
    number: int, crop: float, width: int, height: int, size: Size
) -> None:
    one = version(Dataset(random_crop=crop), DIGEST, number, False)
    box = crop_box(width, height, size, one.across, one.down, one.zoom)
    assert 0 <= box.left < box.right <= width + 1e-6 and 0 <= box.top < box.bottom <= height + 1e-6
    shape = (box.right - box.left) / (box.bottom - box.top)
    assert shape == pytest.approx(size.width / size.height, rel=1e-6)
    largest = crop_box(width, height, size)
    share = (box.right - box.left) / (largest.right - largest.left)
    assert 1 - crop - 1e-9 <= share <= 1 + 1e-9
    assert (one.brightness, one.contrast, one.saturation) == (1, 1, 1)


def test_versions_differ_by_number_and_by_image_and_are_always_the_same() -> None:
    numbers = [version(EVERYTHING, DIGEST, n, False) for n in range(6)]
    assert len(set(numbers)) == 6
    assert version(EVERYTHING, "f" * 64, 1, False) != numbers[1]
    assert numbers[3] == version(EVERYTHING, DIGEST, 3, False)
    # Drawn when this was written; a resumed run relies on it.
    assert numbers[1].across == pytest.approx(0.0031659, abs=1e-6)


def test_colours_alone_leave_the_crop_in_the_centre() -> None:
    one = version(Dataset(color_jitter=0.2), DIGEST, 4, False)
    assert (one.across, one.down, one.zoom) == (0.5, 0.5, 1.0)
    assert all(0.8 <= f <= 1.2 and f != 1 for f in (one.brightness, one.contrast, one.saturation))


def test_a_mirrored_version_is_the_version_mirrored() -> None:
    picture = pictures.quadrants(width=80, height=60)
    plain, mirrored = (version(EVERYTHING, DIGEST, 2, m) for m in (False, True))
    size = Size(48, 64)
    expected = ImageOps.mirror(plain.of_image(picture, size))
    difference = np.asarray(mirrored.of_image(picture, size), int) - np.asarray(expected, int)
    assert np.abs(difference).max() <= 1


def test_a_mask_is_cut_as_its_image_is_whatever_its_size() -> None:
    """A white square on black is its own mask, at an eighth of the size as well."""
    picture = Image.new("RGB", (320, 240))
    picture.paste((255, 255, 255), (100, 80, 180, 160))
    for scale in (1, 2):
        mask = picture.convert("L").resize((320 // scale, 240 // scale))
        for number in range(5):
            one = version(Dataset(random_crop=0.3), DIGEST, number, number % 2 == 1)
            seen = one.of_image(picture, Size(256, 256)).convert("L")
            small = one.of_mask(mask, picture.size, Size(32, 32))
            expected = np.asarray(seen.resize((32, 32), Image.Resampling.BOX), int)
            assert np.abs(np.asarray(small, int) - expected).mean() < 8
