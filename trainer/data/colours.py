"""Pixels of any kind as 8-bit sRGB. Values keep their meaning: nothing saturates, nothing that
was transparent shows.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

Colour = tuple[int, int, int]
WHITE: Colour = (255, 255, 255)

PLAIN_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})
"""Pillow's modes that can always be converted; of the others, some values have no clear meaning."""

_SPACE_OF_MODE = {"L": "GRAY", "RGB": "RGB", "RGBA": "RGB", "CMYK": "CMYK", "LAB": "Lab"}


def to_rgb(image: Image.Image, background: Colour) -> Image.Image:
    """A decoded `image` as 8-bit sRGB, its transparent parts showing `background`.

    Raises:
        ValueError: saying what is wrong, if its values cannot be understood.
    """
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _from_deep_grey(image, background)
    if image.has_transparency_data:
        over = _to_srgb(image.convert("RGBA"), image.info.get("icc_profile"))
        flat = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(flat, over).convert("RGB")
    if image.mode in ("1", "P", "YCbCr"):
        return _to_srgb(image.convert("RGB"), image.info.get("icc_profile"))
    return _to_srgb(image, image.info.get("icc_profile")).convert("RGB")


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
    rgb = np.repeat(grey[:, :, None], 3, axis=2)  # [H, W, 3]
    hidden = image.info.get("transparency")  # a 16-bit PNG may name one value as transparent
    if isinstance(hidden, int):
        rgb[values == hidden] = background
    return Image.fromarray(rgb)


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """`image` with its colour profile applied, in mode RGB or RGBA; unchanged if it needs none."""
    transform = _transform(image.mode, profile) if profile or image.mode == "LAB" else None
    return image if transform is None else transform.apply(image)


@lru_cache(maxsize=16)
def _transform(mode: str, profile: bytes | None) -> ImageCms.ImageCmsTransform | None:
    """The way from a profile's colours to sRGB; none if that would change nothing.

    A profile that is broken, or belongs to another kind of image, says nothing about the colours.
    """
    try:
        source = ImageCms.ImageCmsProfile(
            io.BytesIO(profile) if profile else ImageCms.createProfile("LAB")
        )
        if source.profile.xcolor_space.strip() != _SPACE_OF_MODE.get(mode):
            return None
        if "srgb" in (source.profile.profile_description or "").lower():
            return None
        return ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), mode, "RGBA" if mode == "RGBA" else "RGB"
        )
    except (OSError, ImageCms.PyCMSError):
        return None
