"""What a picture looks like: how blurred it is, and which pictures look alike.

A perceptual hash tells what is to be seen, and not how bright or in which colours: a red car and a
blue one have the same. So a thumbnail tells the colours. Together they find copies that were
compressed, scaled, brightened a little or cropped by a few percent, and hardly anything else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from trainer.data import images

SAME_BITS = 8
"""Pictures look alike if no more bits than these of the 64 of their hashes differ, and"""
SAME_COLOURS = 16.0
"""their thumbnails differ by no more than this, of 255: the root mean square over all values."""
BLURRED = 0.62
"""Above this, `blur` is visible: about that of a Gaussian of 2 pixels."""

_THUMBNAIL = 8  # pixels, both sides
_BLUR_SIDE = 384  # what is sharp at this size is sharp enough for any base
_ROWS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Likeness:
    """What is compared of two pictures."""

    hash: NDArray[np.bool_]  # [64]
    colours: NDArray[np.uint8]  # [8 * 8 * 3]

    @classmethod
    def of(cls, image: Image.Image) -> Likeness:
        """The likeness of an RGB image of any size."""
        small = image.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
        return cls(imagehash.phash(image).hash.reshape(-1), np.asarray(small).reshape(-1))


@dataclass(frozen=True, eq=False)
class Look:
    """What is kept of an image after it has been looked at: under a kilobyte."""

    measured: images.Measured
    blur: float
    """0 (sharp) to 1, at the size of training."""
    likeness: Likeness
    digest: bytes
    """Of the file."""


def look(path: Path, resolution: int) -> Look:
    """Decodes the image in `path` and looks at it at about the size of training.

    Raises:
        DatasetError: if it cannot be read.
    """
    measured, image = images.preview(path, min(resolution, _BLUR_SIDE))
    return Look(measured, blur(image), Likeness.of(image), images.digest(path))


def blur(image: Image.Image) -> float:
    """How little a picture changes by being blurred: 0 (it was sharp) to 1 (it was blurred).

    The measure of Crete et al., "The blur effect" (2007): what share of the differences between
    neighbouring pixels remains after a strong blur, along the axis on which more remains. It does
    not depend on contrast, so a drawing with few sharp lines counts as sharp.
    """
    grey = image.convert("L")
    return max(_remaining(grey, axis=0), _remaining(grey, axis=1))


def alike(likenesses: Sequence[Likeness]) -> list[list[int]]:
    """Groups of at least two pictures each of which looks like another one of its group.

    Groups and their members are in the order given. Time grows with the square of the number:
    a second or two for 5,000.
    """
    if not likenesses:
        return []
    signs = np.stack([one.hash for one in likenesses]) * np.float32(2) - 1  # [N, 64], ±1
    colours = np.stack([one.colours for one in likenesses]).astype(np.float32)  # [N, D]
    squares = np.einsum("nd,nd->n", colours, colours)  # [N]
    group = np.arange(len(likenesses))  # [N], the first member, directly or by way of others
    for start in range(0, len(likenesses), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        agreement = signs[rows] @ signs.T  # [rows, N], bits that agree less those that do not
        distances = squares[rows, None] + squares - 2 * (colours[rows] @ colours.T)  # [rows, N]
        close = agreement >= signs.shape[1] - 2 * SAME_BITS
        close &= distances <= SAME_COLOURS**2 * colours.shape[1]
        for row in np.flatnonzero(close.sum(axis=1) > 1):
            joined = np.unique(group[close[row]])
            if len(joined) > 1:
                group[np.isin(group, joined)] = joined[0]
    members = defaultdict(list)
    for index, first in enumerate(group.tolist()):
        members[first].append(index)
    return [indices for indices in members.values() if len(indices) > 1]


def _remaining(grey: Image.Image, axis: int) -> float:
    radius = (0, 4) if axis == 0 else (4, 0)
    before = _differences(grey, axis)
    after = _differences(grey.filter(ImageFilter.BoxBlur(radius)), axis)
    total = int(before.sum(dtype=np.int64))
    lost = int(np.maximum(before - after, 0).sum(dtype=np.int64))
    return (total - lost) / total if total else 0.0


def _differences(grey: Image.Image, axis: int) -> NDArray[np.int16]:
    return np.abs(np.diff(np.asarray(grey, dtype=np.int16), axis=axis))
