"""Training batches, each a pure function of its step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer.data import versions, wording
from trainer.data.buckets import Size, assign, bucket_sizes
from trainer.data.dataset import Example
from trainer.data.latents import Encoded, Latents
from trainer.data.pool import Ahead
from trainer.data.schedule import Schedule
from trainer.data.versions import Version
from trainer.errors import DatasetError
from trainer.randomness import generator
from trainer.settings import Settings


@dataclass(frozen=True)
class Batch:
    """Images of one size: latents [B, C, h, w] on the CPU, captions as drawn, and files.

    `mask` [B, h, w] is what each latent counts, from 0 to 1; None if all images are without. The
    whole batch counts `weight`. `unreadable` are images that should be in it, but vanished or broke
    since the run began.
    """

    latents: Tensor
    captions: tuple[str, ...]
    files: tuple[Path, ...]
    mask: Tensor | None = None
    weight: float = 1.0
    unreadable: tuple[Path, ...] = ()


class Batches:
    """Pass j of step k for any j and k, whatever was asked before.

    A step has one pass for each of gradient_accumulation, then, if there are regularisation images
    (`prior`), as many passes over those (Ruiz et al., 2022, arXiv:2208.12242, eq. 2).
    """

    def __init__(
        self, images: Sequence[Encoded], wanted: Settings, prior: Sequence[Encoded] = ()
    ) -> None:
        accumulation = wanted.training.gradient_accumulation
        streams = [_Stream(images, wanted, "batch", 1.0)]
        if prior:
            streams.append(_Stream(prior, wanted, "prior", wanted.loss.prior_weight))
        self._accumulation = accumulation
        self._streams = streams
        self.passes = accumulation * len(streams)

    def batch(self, step: int, micro: int) -> Batch:
        """Pass `micro`, of `passes`, of optimizer step `step`; both from 0.

        Raises:
            DatasetError: if no image can be read any more.
        """
        stream, place = divmod(micro, self._accumulation)
        return self._streams[stream].batch(step * self._accumulation + place)


class _Stream:
    """Batches of some images, by number."""

    def __init__(
        self, images: Sequence[Encoded], wanted: Settings, purpose: str, weight: float
    ) -> None:
        self._images = images
        self._wanted = wanted.dataset
        self._seed = wanted.training.seed
        self._purpose = purpose
        self._weight = weight
        self._versions = versions.count(wanted.dataset)
        self._schedule = Schedule.plan(
            [image.size for image in images],
            [image.example.repeats for image in images],
            wanted.training.batch_size,
            self._seed,
        )
        self._found = Ahead(self._find)

    def batch(self, number: int) -> Batch:
        """Batch `number` without the images that cannot be read; if none can, the next one that
        has some, with those that are missing here."""
        missing: list[Path] = []
        for place in range(number, number + self._schedule.round_length):
            latents, kept = [], []
            for image, found in self._latents(place):
                if isinstance(found, DatasetError):
                    missing.append(image.file)
                    last = found
                else:
                    kept.append(image)
                    latents.append(found)
            if kept:
                break
        else:
            raise last
        draws = generator(self._seed, f"{self._purpose} captions", number)
        return Batch(
            latents=torch.stack([one.latents for one in latents]),
            captions=tuple(wording.reworded(i.caption, self._wanted, draws) for i in kept),
            files=tuple(image.file for image in kept),
            mask=_masks(latents),
            weight=self._weight,
            unreadable=tuple(missing),
        )

    def _latents(self, number: int) -> Iterator[tuple[Encoded, Latents | DatasetError]]:
        """Each image of a batch with its latents, or why there are none."""
        found = self._found(number)
        for image, version, known in zip(
            self._images_of(number), self._versions_of(number), found, strict=True
        ):
            try:
                # What the other thread has not found is encoded here, where the model is.
                yield image, known or image.encoder.latents(image.example, image.size, version)
            except DatasetError as error:
                yield image, error

    def _find(self, number: int) -> list[Latents | None]:
        return [
            image.encoder.find(image.example, image.size, version)
            for image, version in zip(
                self._images_of(number), self._versions_of(number), strict=True
            )
        ]

    def _images_of(self, number: int) -> list[Encoded]:
        return [self._images[index] for index in self._schedule.batch(number)]

    def _versions_of(self, number: int) -> list[Version]:
        images = self._images_of(number)
        drawn = torch.rand((2, len(images)), generator=generator(self._seed, self._purpose, number))
        mirrored = (drawn[0] < 0.5) & self._wanted.flip
        numbers = (drawn[1] * self._versions).long().clamp(max=self._versions - 1)
        return [
            image.encoder.version(image.example, which, mirror)
            for image, which, mirror in zip(
                images, numbers.tolist(), mirrored.tolist(), strict=True
            )
        ]


def _masks(latents: Sequence[Latents]) -> Tensor | None:
    """[B, h, w], ones for an image without a mask; None if all are."""
    if all(one.mask is None for one in latents):
        return None
    return torch.stack(
        [torch.ones(one.latents.shape[1:]) if one.mask is None else one.mask for one in latents]
    )


def sizes_of(examples: Sequence[Example], resolution: int) -> list[Size]:
    """The bucket of each example."""
    sizes = bucket_sizes(resolution)
    return [assign(example.width, example.height, sizes) for example in examples]
