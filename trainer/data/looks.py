"""What a picture looks like: how blurred it is, and which pictures look alike.

The perceptual-hash libraries were considered: ImageHash brings scipy and PyWavelets for what is a
thumbnail and a comparison, and hashes the brightness alone, so that a red car and a blue one are
the same picture. Thumbnails in colour are compared here, exactly, for thousands of images at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from trainer.data import images

ALIKE = 0.18
"""Pictures look alike if their thumbnails differ by less than this share of their own contrast:
copies that were compressed, scaled, brightened a little or cropped by a few percent."""
BLURRED = 0.62
"""Above this, `blur` is visible: about that of a Gaussian of 2 pixels."""

_THUMBNAIL = 8  # pixels, both sides
_FAINT = 5.0  # contrast, of 255, below which noise would decide
_BLUR_SIDE = 384  # what is sharp at this size is sharp enough for any base
_ROWS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Look:
    """What is kept of an image after it has been looked at: under a kilobyte."""

    measured: images.Measured
    blur: float
    """0 (sharp) to 1, at the size of training."""
    thumbnail: NDArray[np.uint8]  # [8 * 8 * 3]
    digest: bytes
    """Of the file."""


def look(path: Path, resolution: int) -> Look:
    """Decodes the image in `path` and looks at it at about the size of training.

    Raises:
        DatasetError: if it cannot be read.
    """
    measured, image = images.preview(path, min(resolution, _BLUR_SIDE))
    small = image.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    return Look(measured, blur(image), np.asarray(small).reshape(-1), images.digest(path))


def blur(image: Image.Image) -> float:
    """How little a picture changes by being blurred: 0 (it was sharp) to 1 (it was blurred).

    The measure of Crete et al., "The blur effect" (2007): what share of the differences between
    neighbouring pixels remains after a strong blur, along the axis on which more remains. It does
    not depend on contrast, so a drawing with few sharp lines counts as sharp.
    """
    grey = image.convert("L")
    return max(_remaining(grey, axis=0), _remaining(grey, axis=1))


def alike(thumbnails: Sequence[NDArray[np.uint8]]) -> list[list[int]]:
    """Groups of at least two pictures each of which looks like another one of its group.

    Groups and their members are in the order given. Time grows with the square of the number:
    about a second for 5,000.
    """
    if not thumbnails:
        return []
    pixels = np.stack(thumbnails).astype(np.float32)  # [N, D]
    squares = np.einsum("nd,nd->n", pixels, pixels)  # [N]
    limits = ALIKE * np.maximum(pixels.std(axis=1), _FAINT)  # [N], root mean square
    group = np.arange(len(pixels))  # [N], the first member, directly or by way of others
    for start in range(0, len(pixels), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        distances = squares[rows, None] + squares - 2 * (pixels[rows] @ pixels.T)  # [rows, N]
        close = distances < limits[rows, None] * limits * pixels.shape[1]
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
