"""Reading one image file: checked before it is decoded, then upright RGB on a chosen background.

Nothing is changed silently: an image is read as its author saw it, or refused by name.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from trainer.data.buckets import Box, Size
from trainer.data.names import shown
from trainer.errors import DatasetError

Colour = tuple[int, int, int]
WHITE: Colour = (255, 255, 255)

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "TIFF", "GIF")
"""The decoders that a file may reach; all others of Pillow's (EPS, PSD, …) never see it."""
SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".gif"}
)
MAX_BYTES = 256 * 2**20
MAX_PIXELS = 89_000_000
"""Just under the size at which Pillow itself begins to warn of decompression bombs."""

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = frozenset({5, 6, 7, 8})
# Modes whose every value has one meaning, so that decoding them is all that can go wrong.
_PLAIN_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})


@dataclass(frozen=True)
class Measured:
    """What is known of an image once it has been decoded. Sizes are in pixels, upright."""

    width: int
    height: int
    animated: bool


def is_image_name(name: str) -> bool:
    """Whether a file of this name claims to be an image of a kind that can be read."""
    return Path(name).suffix.lower() in SUFFIXES


def open_image(path: Path, background: Colour = WHITE) -> Image.Image:
    """The image in `path`: RGB, upright, fully decoded; transparent parts show `background`.

    16-bit and float images are rescaled to 0-255. Of an animation, the first frame.

    Raises:
        DatasetError: naming the file, if it is missing, too large, broken or not an image.
    """
    with _decoding(path) as image:
        orientation = _orientation(image)
        image.load()
        return _upright(_to_rgb(image, background), orientation)


def resize_and_crop(image: Image.Image, size: Size, box: Box) -> Image.Image:
    """The part `box` of `image` at `size`, by Lanczos resampling (see `buckets.crop_box`)."""
    return image.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


def measure(path: Path) -> Measured:
    """Decodes the whole file, as cheaply as that can be done, and returns its size.

    Raises:
        DatasetError: in exactly the cases in which `open_image` does.
    """
    with _decoding(path) as image:
        orientation = _orientation(image)
        width, height = image.size
        # Still reads every byte of the file, but computes an eighth of a JPEG's width and height.
        image.draft("L", (1, 1))
        animated = image.format in ("GIF", "WEBP", "PNG", "AVIF") and bool(
            getattr(image, "is_animated", False)
        )
        image.load()
        if image.format == "TIFF":  # its decoder has applied the orientation by now
            width, height = image.size
            orientation = 1
        if image.mode not in _PLAIN_MODES:
            _to_rgb(image, WHITE)
    if orientation in _SIDEWAYS:
        width, height = height, width
    return Measured(width, height, animated)


@contextlib.contextmanager
def _decoding(path: Path) -> Iterator[Image.Image]:
    """The opened image, of acceptable size; whatever goes wrong inside is a DatasetError."""
    try:
        _check_file(path)
        with Image.open(path, formats=FORMATS) as image:
            _check_pixels(path, *image.size)
            yield image
    except DatasetError:
        raise
    except MemoryError:
        raise DatasetError(f"{shown(path)} does not fit into memory.", "Scale it down.") from None
    except UnidentifiedImageError:
        raise DatasetError(
            f"{shown(path)} is not an image that can be read.",
            "Save it as PNG, JPEG, WebP, AVIF, BMP, TIFF or GIF, or remove it.",
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(path) from None
    # Decoders fed with hostile bytes raise anything from SyntaxError to struct.error; each of them
    # means that this file is broken, and that is what is said.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DatasetError(
            f"{shown(path)} is broken: {reason[:200].rstrip('.')}.", "Replace it or remove it."
        ) from error


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise DatasetError(f"{shown(path)} cannot be read: {error.strerror}.") from None
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise DatasetError(f"{shown(path)} is not a file.")
    if status.st_size == 0:
        raise DatasetError(f"{shown(path)} is empty (0 bytes).", "Replace it or remove it.")
    if status.st_size > MAX_BYTES:
        raise DatasetError(
            f"{shown(path)} has {status.st_size / 2**20:,.0f} MiB, more than the "
            f"{MAX_BYTES // 2**20} MiB allowed.",
            "Scale it down.",
        )


def _check_pixels(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise _too_many_pixels(path, f"{width} x {height} pixels")


def _too_many_pixels(path: Path, size: str = "too many pixels") -> DatasetError:
    return DatasetError(
        f"{shown(path)} has {size}; {MAX_PIXELS // 10**6} million are allowed.", "Scale it down."
    )


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # broken EXIF says nothing about the pixels, which are still good
        return 1
    return value if value in _UPRIGHT else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image, background: Colour) -> Image.Image:
    """`image` as 8-bit RGB. Values keep their meaning: nothing saturates, nothing hidden shows."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _from_deep_grey(image, background)
    if image.has_transparency_data:
        over = image.convert("RGBA")
        flat = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(flat, over).convert("RGB")
    return image.convert("RGB")


def _from_deep_grey(image: Image.Image, background: Colour) -> Image.Image:
    """RGB from one channel of 16-bit, 32-bit or float values, rescaled to 0-255."""
    values = np.asarray(image).astype(np.float64)  # [H, W]
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high) and low >= 0):
        raise ValueError("its pixels are negative or not finite")
    if image.mode == "F" and high <= 1:
        scale = 255.0
    elif image.mode == "F" and high <= 255:
        scale = 1.0
    elif high <= 65535:
        scale = 1 / 257
    else:
        raise ValueError("its pixels have more than 16 bits")
    grey = np.rint(values * scale).astype(np.uint8)
    rgb = np.repeat(grey[:, :, None], 3, axis=2)
    hidden = image.info.get("transparency")  # a 16-bit PNG may name one value as transparent
    if isinstance(hidden, int):
        rgb[values == hidden] = background
    return Image.fromarray(rgb)
