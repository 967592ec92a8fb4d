"""Versions of an image: cropped elsewhere, in slightly other colours, mirrored.

Latents are encoded once, before training, so augmentation cannot be drawn at every step. Instead,
an image has a fixed number of versions, each a pure function of the image's content, the settings
and its number; every step picks one. Version 0 is the image as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image, ImageEnhance, ImageOps

from trainer.data.buckets import Size, crop_box
from trainer.randomness import generator
from trainer.settings import Dataset


@dataclass(frozen=True)
class Version:
    """How a version differs from its image.

    `across` and `down`, from 0 to 1, say where the crop lies, and `zoom` what share of its largest
    possible sides it has. Brightness, contrast and saturation are factors.
    """

    across: float = 0.5
    down: float = 0.5
    zoom: float = 1.0
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    mirrored: bool = False

    def of_image(self, image: Image.Image, size: Size) -> Image.Image:
        """This version of an RGB image, at `size`."""
        image = self._placed(image, size, Image.Resampling.LANCZOS)
        for enhance, factor in (
            (ImageEnhance.Brightness, self.brightness),
            (ImageEnhance.Contrast, self.contrast),
            (ImageEnhance.Color, self.saturation),
        ):
            if factor != 1:
                image = enhance(image).enhance(factor)
        return image

    def of_mask(self, mask: Image.Image, image_size: tuple[int, int], size: Size) -> Image.Image:
        """The same part of a mask of the image, whatever pixels the mask has, at `size`."""
        if mask.size != image_size:
            mask = mask.resize(image_size, Image.Resampling.BILINEAR)
        return self._placed(mask, size, Image.Resampling.BOX)

    def _placed(self, image: Image.Image, size: Size, resampling: Image.Resampling) -> Image.Image:
        box = crop_box(image.width, image.height, size, self.across, self.down, self.zoom)
        part = image.resize(size, resampling, box=box, reducing_gap=3.0)
        return ImageOps.mirror(part) if self.mirrored else part


def count(wanted: Dataset) -> int:
    """How many versions each image has, mirrored ones not counted."""
    altered = wanted.random_crop is not None or wanted.color_jitter is not None
    return wanted.versions if altered else 1


def version(wanted: Dataset, digest: str, number: int, mirrored: bool) -> Version:
    """Version `number` of the image whose content has the SHA-256 `digest`, in hex."""
    if number == 0:
        return Version(mirrored=mirrored)
    draws = generator(0, "version", int(digest[:16], 16), number)
    drawn = torch.rand(6, generator=draws, dtype=torch.float64)
    across, down, zoom = drawn[:3].tolist()
    if wanted.random_crop is None:
        across = down = 0.5
    smaller = (wanted.random_crop or 0) * zoom
    colours = 1 + (wanted.color_jitter or 0) * (2 * drawn[3:] - 1)
    brightness, contrast, saturation = colours.tolist()
    return Version(across, down, 1 - smaller, brightness, contrast, saturation, mirrored)
