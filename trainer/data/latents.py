"""Images as latents: scaled to their bucket, cropped at the centre, encoded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from trainer.data.buckets import Size
from trainer.data.dataset import Example
from trainer.data.images import open_image
from trainer.model.stable_diffusion import BaseModel


@dataclass(frozen=True)
class Encoded:
    """An example ready to train on. Latents are [C, h, w] in fp32 on the CPU, scaled to about unit
    variance; `mirrored` is there if mirroring was asked for."""

    file: Path
    caption: str
    latents: Tensor
    mirrored: Tensor | None
    repeats: int


def encode(
    model: BaseModel,
    examples: Sequence[Example],
    sizes: Sequence[Size],
    captions: Sequence[str],
    flip: bool,
    progress: Callable[[int], None],
) -> list[Encoded]:
    """Encodes every example at its bucket's size; calls `progress(done)` after each."""
    encoded = []
    for done, (example, size, caption) in enumerate(
        zip(examples, sizes, captions, strict=True), start=1
    ):
        image = fit(open_image(example.image), size)
        latents = _encode_one(model, image)
        mirrored = _encode_one(model, ImageOps.mirror(image)) if flip else None
        encoded.append(Encoded(example.image, caption, latents, mirrored, example.repeats))
        progress(done)
    model.release_vae()
    return encoded


def fit(image: Image.Image, size: Size) -> Image.Image:
    """The image scaled to cover `size` and cropped to it at the centre."""
    return ImageOps.fit(image, (size.width, size.height), Image.Resampling.LANCZOS)


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as [3, H, W] in [-1, 1]."""
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32).copy())
    return pixels.permute(2, 0, 1) / 127.5 - 1


def to_image(pixels: Tensor) -> Image.Image:
    """[3, H, W] in [-1, 1] as an RGB image; values beyond are clipped."""
    bytes_ = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(bytes_.permute(1, 2, 0).cpu().numpy())


def _encode_one(model: BaseModel, image: Image.Image) -> Tensor:
    return model.encode_images(to_tensor(image)[None])[0].cpu()
