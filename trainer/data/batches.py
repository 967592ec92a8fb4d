"""Training batches, each a pure function of its step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer.data.buckets import Size, assign, bucket_sizes
from trainer.data.dataset import Example
from trainer.data.latents import Encoded
from trainer.data.schedule import Schedule
from trainer.randomness import generator
from trainer.settings import Settings


@dataclass(frozen=True)
class Batch:
    """Images of one size: latents [B, C, h, w] on the CPU, captions after dropout, and files."""

    latents: Tensor
    captions: tuple[str, ...]
    files: tuple[Path, ...]


class Batches:
    """Batch j of step k for any k and j, whatever was asked before."""

    def __init__(self, images: Sequence[Encoded], wanted: Settings) -> None:
        self._images = images
        self._seed = wanted.training.seed
        self._accumulation = wanted.training.gradient_accumulation
        self._caption_dropout = wanted.dataset.caption_dropout
        self._schedule = Schedule.plan(
            [Size(image.latents.shape[-1], image.latents.shape[-2]) for image in images],
            [image.repeats for image in images],
            wanted.training.batch_size,
            self._seed,
        )

    def batch(self, step: int, micro: int) -> Batch:
        """Pass `micro`, of gradient_accumulation, of optimizer step `step`; both from 0."""
        number = step * self._accumulation + micro
        images = [self._images[index] for index in self._schedule.batch(number)]
        drawn = torch.rand((2, len(images)), generator=generator(self._seed, "batch", number))
        mirror, drop = drawn[0] < 0.5, drawn[1] < self._caption_dropout
        latents = [
            image.mirrored if flipped and image.mirrored is not None else image.latents
            for image, flipped in zip(images, mirror.tolist(), strict=True)
        ]
        return Batch(
            torch.stack(latents),
            tuple(
                "" if dropped else image.caption
                for image, dropped in zip(images, drop.tolist(), strict=True)
            ),
            tuple(image.file for image in images),
        )


def sizes_of(examples: Sequence[Example], resolution: int) -> list[Size]:
    """The bucket of each example."""
    sizes = bucket_sizes(resolution)
    return [assign(example.width, example.height, sizes) for example in examples]
