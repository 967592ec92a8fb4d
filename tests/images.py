"""Drawing with diffusers' own pipelines, and comparing images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from trainer.preview.render import Picture


def drawn_by(pipeline: Any, picture: Picture) -> Image.Image:
    """The picture as a diffusers pipeline draws it."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(  # type: ignore[no-any-return]
        picture.prompt,
        negative_prompt=picture.negative_prompt,
        num_inference_steps=picture.steps,
        guidance_scale=picture.guidance,
        width=picture.width,
        height=picture.height,
        generator=torch.Generator().manual_seed(picture.seed),
    ).images[0]


def apart(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of any pixel, of 255."""
    assert one.size == other.size
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())
