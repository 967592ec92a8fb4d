"""Small pictures in every awkward form, for the tests of the data."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

RED, GREEN, BLUE, YELLOW = (220, 30, 30), (30, 200, 60), (40, 60, 210), (230, 220, 50)
WIDTH, HEIGHT = 48, 32
_ORIENTATION_TAG = 0x0112

# What a viewer does to the stored picture, by EXIF orientation; the inverse makes the stored one.
_TO_STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def quadrants(
    colours: Sequence[tuple[int, ...]] = (RED, GREEN, BLUE, YELLOW),
    width: int = WIDTH,
    height: int = HEIGHT,
) -> Image.Image:
    """A picture of four colours: top left, top right, bottom left, bottom right."""
    pixels = np.zeros((height, width, len(colours[0])), dtype=np.uint8)
    for index, colour in enumerate(colours):
        row, column = divmod(index, 2)
        top, left = row * height // 2, column * width // 2
        pixels[top : top + height // 2, left : left + width // 2] = colour
    return Image.fromarray(pixels)


def noise(seed: int, width: int = 96, height: int = 64) -> Image.Image:
    """A picture like no other: soft blotches and some grain."""
    rng = np.random.default_rng(seed)
    blotches = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    pixels = np.asarray(blotches.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    grain = rng.integers(-20, 21, pixels.shape)
    return Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))


def encode(image: Image.Image, format_name: str, **options: object) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def oriented(format_name: str, orientation: int, **options: object) -> bytes:
    """A file that shows `quadrants` to those who heed its EXIF orientation."""
    image = quadrants()
    transpose = _TO_STORED.get(orientation)
    stored = image if transpose is None else image.transpose(transpose)
    exif = Image.Exif()
    exif[_ORIENTATION_TAG] = orientation
    return encode(stored, format_name, exif=exif, **options)


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    """The colours in the middle of the four quadrants."""
    rgb = np.asarray(image)
    height, width = rgb.shape[:2]
    return [
        tuple(int(value) for value in rgb[row * height // 4, column * width // 4])
        for row in (1, 3)
        for column in (1, 3)
    ]


def raw_png(rows: NDArray[np.uint8], width: int, colour_type: int, depth: int = 16) -> bytes:
    """A PNG written by hand: `rows` are the bytes of each line, [H, bytes]."""
    lines = b"".join(b"\x00" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (
            png_chunk(b"IHDR", header),
            png_chunk(b"IDAT", zlib.compress(lines)),
            png_chunk(b"IEND", b""),
        )
    )


def png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png_claiming(width: int, height: int) -> bytes:
    """A tiny file whose header announces a huge picture."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = png_chunk(b"IDAT", zlib.compress(b"\x00" * 1000)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + body


def swapped_profile() -> bytes:
    """A colour profile in which red and green have changed places."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile = bytearray(bytes(profile).replace(b"s\x00R\x00G\x00B", b"o\x00t\x00h\x00r"))
    count = struct.unpack_from(">I", profile, 128)[0]
    entries = {bytes(profile[132 + 12 * n : 136 + 12 * n]): 132 + 12 * n for n in range(count)}
    red, green = entries[b"rXYZ"], entries[b"gXYZ"]
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)


def save(path: Path, image: Image.Image | None = None, **options: object) -> Path:
    """Saves a picture, by default `quadrants`, in the format of the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or quadrants()).save(path, **options)  # type: ignore[arg-type]
    return path
