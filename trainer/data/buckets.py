"""Aspect-ratio buckets: the sizes at which images are trained, and what each crops.

Pure functions on numbers. Sizes are in pixels, width first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple


class Size(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width} x {self.height}"


class Box(NamedTuple):
    """A part of an image, in its own pixels; edges may fall between pixels."""

    left: float
    top: float
    right: float
    bottom: float


@lru_cache(maxsize=64)
def bucket_sizes(
    resolution: int, step: int | None = None, max_ratio: float = 4.0
) -> tuple[Size, ...]:
    """Sizes of about resolution² pixels, never more, from `1:max_ratio` to `max_ratio:1`.

    Sides are multiples of `step`, by default 64, less below 512 so that there is a choice of
    shapes; the square of the resolution itself is always among them. Sorted by width, then height.

    Args:
        resolution: a multiple of 8.
        step: a multiple of 8; the VAE halves an image three times.
    """
    if step is None:
        step = _step_for(resolution)
    area = resolution * resolution
    sizes = {Size(resolution, resolution)}
    for long_side in range(resolution // step * step, int(resolution * max_ratio) + 1, step):
        short_side = area // long_side // step * step
        if short_side and max(resolution, long_side) <= max_ratio * short_side:
            sizes |= {Size(long_side, short_side), Size(short_side, long_side)}
    return tuple(sorted(sizes))


def assign(width: int, height: int, sizes: Sequence[Size]) -> Size:
    """The size of the nearest shape, as little as possible being cropped; the larger of equals."""
    wanted = math.log(width / height)
    return min(
        sizes,
        key=lambda size: (
            abs(math.log(size.width / size.height) - wanted),
            -size.width * size.height,
            size,
        ),
    )


def crop_box(
    width: int,
    height: int,
    size: Size,
    across: float = 0.5,
    down: float = 0.5,
    zoom: float = 1.0,
) -> Box:
    """The largest part of a width x height image that has the shape of `size`, or `zoom` (above 0,
    up to 1) of its sides.

    Scaled to `size`, it fills it exactly. `across` and `down`, from 0 (left, top) to 1 (right,
    bottom), say where it lies; the default is the centre.
    """
    # Image pixels per pixel of the size.
    scale = min(width / size.width, height / size.height) * zoom
    spare_width = max(0.0, width - size.width * scale)
    spare_height = max(0.0, height - size.height * scale)
    left, top = spare_width * across, spare_height * down
    return Box(left, top, left + width - spare_width, top + height - spare_height)


def _step_for(resolution: int) -> int:
    """The largest power of two from 8 to 64 of which at least eight make up the resolution."""
    step = 64
    while step > 8 and step * 8 > resolution:
        step //= 2
    return step
