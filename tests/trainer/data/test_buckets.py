"""Aspect-ratio buckets, as properties that hold for any image."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.buckets import Size, assign, bucket_sizes, crop_box

resolutions = st.integers(4, 256).map(lambda n: 8 * n)
sides = st.integers(1, 20_000)
unit = st.floats(0, 1)


@given(resolutions)
def test_sizes_are_of_about_the_resolution_squared_and_never_more(resolution: int) -> None:
    sizes = bucket_sizes(resolution)
    assert Size(resolution, resolution) in sizes
    assert list(sizes) == sorted(set(sizes))
    for size in sizes:
        assert size.width % 8 == size.height % 8 == 0
        assert 0.5 * resolution**2 < size.width * size.height <= resolution**2
        assert max(size) <= 4 * min(size)
        assert Size(size.height, size.width) in sizes


@pytest.mark.parametrize(("resolution", "step"), [(64, 8), (256, 32), (512, 64), (1024, 64)])
def test_the_step_follows_the_resolution(resolution: int, step: int) -> None:
    sizes = bucket_sizes(resolution)
    assert math.gcd(*(side for size in sizes for side in size)) == step


def test_sdxl_has_the_sizes_it_was_trained_at() -> None:
    known = {(1024, 1024), (1152, 896), (896, 1152), (1216, 832), (832, 1216), (1344, 768),
             (768, 1344), (1536, 640), (640, 1536)}  # fmt: skip
    assert known <= set(bucket_sizes(1024))


@given(resolutions, sides, sides)
def test_the_bucket_is_the_one_of_the_nearest_shape(
    resolution: int, width: int, height: int
) -> None:
    sizes = bucket_sizes(resolution)
    chosen = assign(width, height, sizes)

    def distance(size: Size) -> float:
        return abs(math.log(size.width / size.height) - math.log(width / height))

    assert chosen in sizes
    assert distance(chosen) == min(map(distance, sizes))


@given(resolutions, sides, sides)
def test_turning_an_image_turns_its_bucket(resolution: int, width: int, height: int) -> None:
    sizes = bucket_sizes(resolution)
    ratio = assign(width, height, sizes)
    turned = assign(height, width, sizes)
    assert ratio.width * ratio.height == turned.width * turned.height


@given(resolutions.filter(lambda resolution: resolution >= 64), st.floats(0.26, 3.9))
def test_usual_shapes_lose_little(resolution: int, ratio: float) -> None:
    """Within 1:4 and 4:1, no more than a fifth is cut off, from 64 pixels up."""
    width, height = round(4000 * math.sqrt(ratio)), round(4000 / math.sqrt(ratio))
    box = crop_box(width, height, assign(width, height, bucket_sizes(resolution)))
    kept = (box.right - box.left) * (box.bottom - box.top) / (width * height)
    assert kept > 0.8


@given(resolutions, sides, sides, unit, unit)
def test_the_crop_lies_inside_touches_both_edges_and_has_the_shape(
    resolution: int, width: int, height: int, across: float, down: float
) -> None:
    size = assign(width, height, bucket_sizes(resolution))
    left, top, right, bottom = crop_box(width, height, size, across, down)
    slack = 1e-6 * max(width, height)
    assert 0 <= left < right <= width + slack
    assert 0 <= top < bottom <= height + slack
    assert (right - left) / (bottom - top) == pytest.approx(size.width / size.height, rel=1e-6)
    assert math.isclose(right - left, width) or math.isclose(bottom - top, height)


def test_the_crop_is_in_the_middle_unless_told_otherwise() -> None:
    assert crop_box(200, 100, Size(64, 64)) == (50, 0, 150, 100)
    assert crop_box(200, 100, Size(64, 64), across=0) == (0, 0, 100, 100)
    assert crop_box(200, 100, Size(64, 64), across=1) == (100, 0, 200, 100)
    assert crop_box(100, 200, Size(64, 64), down=1) == (0, 100, 100, 200)
