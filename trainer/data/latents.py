"""Images as latents, encoded once for each of their versions and kept by content.

A key holds all that latents depend on: the bytes of the image and of its mask, the size, the
version's crop and colours, the colour behind transparency, the VAE's weights, and what computes
them. So an edited image, another VAE or another resolution never meets latents of before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageColor
from torch import Tensor

from trainer.data import images, versions
from trainer.data.buckets import Size
from trainer.data.dataset import Example
from trainer.data.names import shown
from trainer.data.pool import in_order
from trainer.data.store import Store
from trainer.data.versions import Version
from trainer.errors import DatasetError
from trainer.model.stable_diffusion import BaseModel
from trainer.settings import Dataset

# Changes when the way from an image to its latents does.
_FORMAT = 1
# Encoding takes longer than decoding, and whole images are large.
_DECODED_AHEAD = 2


@dataclass(frozen=True)
class Latents:
    """One version of an image: latents [C, h, w] in fp32 on the CPU, scaled to about unit variance,
    and what each of them counts, [h, w] from 0 to 1, if the image has a mask."""

    latents: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True)
class _Pixels:
    """One version of an image, decoded: an RGB image, and its mask at the size of the latents."""

    image: Image.Image
    mask: Image.Image | None


@dataclass(frozen=True)
class Encoder:
    """Turns images into latents, or finds them in its store."""

    model: BaseModel
    wanted: Dataset
    store: Store

    def find(self, example: Example, size: Size, version: Version) -> Latents | None:
        """The latents if they have been encoded before; on any thread."""
        entry = self.store.get(self._key(example, size, version))
        return None if entry is None else Latents(entry["latents"], entry.get("mask"))

    def latents(self, example: Example, size: Size, version: Version) -> Latents:
        """The latents, encoded now if they are not there.

        Raises:
            DatasetError: if the image is gone, broken, or not the one that was looked at.
        """
        found = self.find(example, size, version)
        if found is not None:
            return found
        (pixels,) = self._decode(example, size, [version])
        return self._encode(example, size, version, pixels)

    def encode(
        self,
        examples: Sequence[Example],
        sizes: Sequence[Size],
        progress: Callable[[int], None],
    ) -> dict[Path, DatasetError]:
        """Encodes all versions of all images that are not there, decoding ahead; calls
        `progress(done)` after each image. Returns what is wrong with those that could not be read.
        """
        missing = [
            [v for v in self._versions(e) if not self.store.has(self._key(e, size, v))]
            for e, size in zip(examples, sizes, strict=True)
        ]
        work = [job for job in zip(examples, sizes, missing, strict=True) if job[2]]
        done = len(examples) - len(work)
        progress(done)
        unreadable = {}
        decoded = in_order(lambda job: self._decode_if_possible(*job), work, ahead=_DECODED_AHEAD)
        for (example, size, lacking), all_pixels in zip(work, decoded, strict=True):
            if isinstance(all_pixels, DatasetError):
                unreadable[example.image] = all_pixels
                continue
            for version, pixels in zip(lacking, all_pixels, strict=True):
                self._encode(example, size, version, pixels)
            done += 1
            progress(done)
        return unreadable

    def version(self, example: Example, number: int, mirrored: bool) -> Version:
        """See `versions.version`."""
        return versions.version(self.wanted, example.digest, number, mirrored)

    def _versions(self, example: Example) -> list[Version]:
        """Every version that a step may pick, and the image as it is."""
        return [
            self.version(example, number, mirrored)
            for number in range(versions.count(self.wanted))
            for mirrored in ([False, True] if self.wanted.flip else [False])
        ]

    def _decode_if_possible(
        self, example: Example, size: Size, wanted: Sequence[Version]
    ) -> list[_Pixels] | DatasetError:
        try:
            return self._decode(example, size, wanted)
        except DatasetError as error:
            return error

    def _decode(self, example: Example, size: Size, wanted: Sequence[Version]) -> list[_Pixels]:
        image = images.open_image(example.image, ImageColor.getrgb(self.wanted.background)[:3])
        mask = self._open_mask(example)
        self._check_unchanged(example)
        scale = self.model.downscale
        small = Size(size.width // scale, size.height // scale)
        return [
            _Pixels(
                version.of_image(image, size),
                None if mask is None else version.of_mask(mask, image.size, small),
            )
            for version in wanted
        ]

    def _open_mask(self, example: Example) -> Image.Image | None:
        if self.wanted.masks == "off":
            return None
        if example.mask is not None:
            return images.open_mask(example.mask)
        return images.open_alpha(example.image) if self.wanted.masks == "alpha" else None

    def _check_unchanged(self, example: Example) -> None:
        """What is kept under a digest must be what has that digest."""
        pairs = [(example.image, example.digest)]
        if example.mask is not None:
            pairs.append((example.mask, example.mask_digest))
        for path, digest in pairs:
            if images.digest(path).hex() != digest:
                raise DatasetError(
                    f"{shown(path)} has changed since this run began.", "Resume, to start from it."
                )

    def _encode(self, example: Example, size: Size, version: Version, pixels: _Pixels) -> Latents:
        # One at a time: latents of a batch may differ in their last bits from those of one.
        latents = self.model.encode_images(to_tensor(pixels.image)[None])[0].cpu()
        entry = {"latents": latents}
        if pixels.mask is not None:
            entry["mask"] = torch.from_numpy(np.asarray(pixels.mask, dtype=np.float32) / 255)
        self.store.put(self._key(example, size, version), entry)
        return Latents(latents, entry.get("mask"))

    def _key(self, example: Example, size: Size, version: Version) -> str:
        mask = {"off": "", "files": example.mask_digest, "alpha": example.mask_digest or "alpha"}
        everything = [
            _FORMAT, example.digest, mask[self.wanted.masks], size, list(vars(version).values()),
            self.wanted.background.lower(), *self._computed_by,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(everything).encode()).hexdigest()

    @cached_property
    def _computed_by(self) -> tuple[str, ...]:
        return self.model.vae_fingerprint, self.model.device.type, torch.__version__


@dataclass(frozen=True)
class Encoded:
    """An example ready to train on, at the size of its bucket; `caption` has the trigger."""

    example: Example
    caption: str
    size: Size
    encoder: Encoder

    @property
    def file(self) -> Path:
        return self.example.image

    @property
    def latents(self) -> Tensor:
        """[C, h, w] of the image as it is, unaltered."""
        return self.encoder.latents(self.example, self.size, Version()).latents


def fit(image: Image.Image, size: Size) -> Image.Image:
    """The image scaled to cover `size` and cropped to it at the centre."""
    return Version().of_image(image, size)


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as [3, H, W] in [-1, 1]."""
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32).copy())
    return pixels.permute(2, 0, 1) / 127.5 - 1


def to_image(pixels: Tensor) -> Image.Image:
    """[3, H, W] in [-1, 1] as an RGB image; values beyond are clipped."""
    bytes_ = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(bytes_.permute(1, 2, 0).cpu().numpy())
