"""Reading one image file: checked before it is decoded, then upright RGB on a chosen background.

Nothing is changed silently: an image is read as its author saw it, or refused by name.
"""

from __future__ import annotations

import contextlib
import hashlib
import stat
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from trainer.data import colours
from trainer.data.colours import WHITE, Colour
from trainer.data.names import shown
from trainer.errors import DatasetError

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "TIFF", "GIF")
"""The decoders that a file may reach; all others of Pillow's (EPS, PSD, …) never see it."""
SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".gif"}
)
OTHER_SUFFIXES = frozenset(
    {".heic", ".heif", ".jxl", ".jp2", ".psd", ".xcf", ".svg", ".tga", ".dng", ".cr2", ".cr3",
     ".nef", ".arw", ".raf", ".orf", ".exr", ".hdr"}
)  # fmt: skip
"""Of pictures that are not read; worth a word, since their owner thinks that they are."""
MAX_BYTES = 256 * 2**20
MAX_PIXELS = 89_000_000
"""Just under the size at which Pillow itself begins to warn of decompression bombs."""

# Told in a sentence of our own (see `_check_pixels`).
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

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
# A JPEG's further pictures are previews of the first.
_ANIMATED = frozenset({"GIF", "WEBP", "PNG", "AVIF"})
_SUBFILE_TAG, _REDUCED = 0x00FE, 0x1  # of a TIFF's page that is a preview


@dataclass(frozen=True)
class Measured:
    """What is known of an image once it has been decoded. Sizes are in pixels, upright."""

    width: int
    height: int
    format: str
    """As Pillow names it; `MPO` is a JPEG that has further pictures behind it."""
    several: bool
    """Whether only the first of its pictures is read: it is animated, or has pages."""


def is_image_name(name: str) -> bool:
    """Whether a file of this name claims to be an image of a kind that can be read."""
    return Path(name).suffix.lower() in SUFFIXES


def open_image(path: Path, background: Colour = WHITE) -> Image.Image:
    """The image in `path`: sRGB, upright, fully decoded; transparent parts show `background`.

    16-bit and float images are rescaled to 0-255, colour profiles applied. Of an animation, the
    first frame.

    Raises:
        DatasetError: naming the file, if it is missing, too large, broken or not an image.
    """
    with _decoding(path) as image:
        orientation = _orientation(image)
        image.load()
        return _upright(colours.to_rgb(image, background), orientation)


def open_mask(path: Path) -> Image.Image:
    """The mask in `path`, one channel, upright: 255 counts in full, 0 not at all.

    Raises:
        DatasetError: in the cases in which `open_image` does.
    """
    return open_image(path, background=(0, 0, 0)).convert("L")


def open_alpha(path: Path) -> Image.Image | None:
    """The transparency of the image in `path`, one channel, upright: 0 is transparent.

    None if it has none. Raises as `open_image` does.
    """
    with _decoding(path) as image:
        orientation = _orientation(image)
        image.load()
        if image.mode not in colours.PLAIN_MODES or not image.has_transparency_data:
            return None
        return _upright(image.convert("RGBA").getchannel("A"), orientation)


def digest(path: Path) -> bytes:
    """SHA-256 of a file's bytes.

    Raises:
        DatasetError: naming the file, if it cannot be read.
    """
    try:
        with path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").digest()
    except OSError as error:
        raise DatasetError(f"{shown(path)} cannot be read: {error.strerror}.") from None


def measure(path: Path, name: str | None = None) -> Measured:
    """Decodes the whole file, as cheaply as that can be done, and returns its size.

    `name` is what the file is called in errors, if not by its path.

    Raises:
        DatasetError: in exactly the cases in which `open_image` does.
    """
    with _decoding(path, name) as image:
        measured, _ = _load_small(image, 1)
        if image.mode not in colours.PLAIN_MODES:
            colours.to_rgb(image, WHITE)
    return measured


def preview(path: Path, side: int) -> tuple[Measured, Image.Image]:
    """What `measure` returns, and the image as `open_image` returns it, but with `side` pixels on
    its shorter side; smaller ones stay as they are.

    Raises:
        DatasetError: in exactly the cases in which `open_image` does.
    """
    with _decoding(path) as image:
        measured, orientation = _load_small(image, side)
        small = _upright(colours.to_rgb(image, WHITE), orientation)
    scale = side / min(small.size)
    if scale < 1:
        size = (max(1, round(small.width * scale)), max(1, round(small.height * scale)))
        small = small.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    return measured, small


def _load_small(image: Image.Image, side: int) -> tuple[Measured, int]:
    """Decodes an opened image, a JPEG at down to an eighth of its size if `side` pixels remain.

    Every byte of the file is read all the same. Returns the orientation, too.
    """
    format_name = image.format or ""
    orientation = _orientation(image)
    width, height = image.size
    several = _holds_several(image)
    image.draft("RGB", (side, side))
    image.load()
    if format_name == "TIFF":  # its decoder has turned it upright by now
        width, height = image.size
    if orientation in _SIDEWAYS:
        width, height = height, width
    return Measured(width, height, format_name, several), orientation


def _holds_several(image: Image.Image) -> bool:
    """Whether an opened image has frames or pages after the one that is read."""
    if image.format in _ANIMATED:
        return bool(getattr(image, "is_animated", False))
    if not isinstance(image, TiffImageFile):
        return False
    try:
        pages = range(1, image.n_frames)
        return not all(_is_preview(image, page) for page in pages)
    except Exception:  # a broken page that nobody reads is none
        return False
    finally:
        image.seek(0)


def _is_preview(image: TiffImageFile, page: int) -> bool:
    image.seek(page)
    return bool(image.tag_v2.get(_SUBFILE_TAG, 0) & _REDUCED)


@contextlib.contextmanager
def _decoding(path: Path, name: str | None = None) -> Iterator[Image.Image]:
    """The opened image, of acceptable size; whatever goes wrong inside is a DatasetError."""
    called = shown(name or path)
    try:
        _check_file(path, called)
        with Image.open(path, formats=FORMATS) as image:
            _check_pixels(called, *image.size)
            if image.format == "PNG":
                _check_sums(path)
            yield image
    except DatasetError:
        raise
    except MemoryError:
        raise DatasetError(f"{called} does not fit into memory.", "Scale it down.") from None
    except UnidentifiedImageError:
        raise DatasetError(
            f"{called} is not an image that can be read.",
            "Save it as PNG, JPEG, WebP, AVIF, BMP, TIFF or GIF, or remove it.",
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(called) from None
    # Decoders fed with hostile bytes raise anything from SyntaxError to struct.error; each of them
    # means that this file is broken, and that is what is said.
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise DatasetError(f"{called} cannot be read: {error.strerror}.") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DatasetError(
            f"{called} is broken: {reason[:200].rstrip('.')}.", "Replace it or remove it."
        ) from error


def _check_file(path: Path, called: str) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise DatasetError(f"{called} cannot be read: {error.strerror}.") from None
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise DatasetError(f"{called} is not a file.")
    if status.st_size == 0:
        raise DatasetError(f"{called} is empty (0 bytes).", "Replace it or remove it.")
    if status.st_size > MAX_BYTES:
        raise DatasetError(
            f"{called} has {status.st_size / 2**20:,.0f} MiB, more than the "
            f"{MAX_BYTES // 2**20} MiB allowed.",
            "Scale it down.",
        )


def _check_sums(path: Path) -> None:
    """Compares a PNG's checksums, which decoding leaves alone; flipped bits would show as noise."""
    with Image.open(path, formats=("PNG",)) as image:
        image.verify()


def _check_pixels(called: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise _too_many_pixels(called, f"{width} x {height} pixels")


def _too_many_pixels(called: str, size: str = "too many pixels") -> DatasetError:
    return DatasetError(
        f"{called} has {size}; {MAX_PIXELS // 10**6} million are allowed.", "Scale it down."
    )


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation that remains to be applied: 1 (upright) to 8."""
    if image.format == "TIFF":  # its decoder applies it
        return 1
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # broken EXIF says nothing about the pixels, which are still good
        return 1
    return value if value in _UPRIGHT else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
