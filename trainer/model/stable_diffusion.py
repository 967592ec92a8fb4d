"""A Stable Diffusion 1.x or 2.x base: encode images and prompts, predict, decode.

The training loop and the renderer use only what `BaseModel` promises, so they never ask which
family they are working with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from trainer.model.bases import Family

PredictionType = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True)
class Conditioning:
    """What a batch of prompts says to the UNet: `hidden` [B, tokens, width], and for SDXL the
    `pooled` text embedding [B, width]."""

    hidden: Tensor
    pooled: Tensor | None = None

    def repeat(self, count: int) -> Conditioning:
        """A single prompt's conditioning [1, …] for `count` images."""
        pooled = None if self.pooled is None else self.pooled.expand(count, -1)
        return Conditioning(self.hidden.expand(count, -1, -1), pooled)

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """The conditionings of several batches as one batch."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        hidden = torch.cat([part.hidden for part in parts])
        return Conditioning(hidden, torch.cat(pooled) if pooled else None)


class BaseModel(Protocol):
    """What a family of bases must offer.

    `alphas_cumprod` [T] is the noise schedule ᾱ. Latents are [B, C, H/f, W/f], scaled to about unit
    variance; `downscale` is f. Images are [B, 3, H, W] in [-1, 1].
    """

    @property
    def family(self) -> Family: ...
    @property
    def reference(self) -> str: ...
    @property
    def folder(self) -> Path: ...
    @property
    def prediction_type(self) -> PredictionType: ...
    @property
    def alphas_cumprod(self) -> Tensor: ...
    @property
    def scheduler_config(self) -> Mapping[str, Any]: ...
    @property
    def downscale(self) -> int: ...
    @property
    def native_size(self) -> int: ...
    @property
    def latent_channels(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def unet(self) -> Any: ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the UNet's weights as files, in hex: what an adapter was trained on."""

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        """The text encoders by the name of their part: `text_encoder`, `text_encoder_2`."""

    @property
    def parts(self) -> dict[str, nn.Module]:
        """All parts that can have adapters."""

    def encode_images(self, images: Tensor) -> Tensor:
        """Latents of images."""

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Images of latents."""

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """What prompts say to the UNet; differentiable with respect to the text encoders."""

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The predicted noise or velocity [B, C, h, w], for noisy latents at timesteps [B]."""

    def release_vae(self) -> None:
        """Takes the VAE off the device until it is used again."""


@dataclass
class StableDiffusion:
    """A loaded base of one text encoder; see `BaseModel`. The weights are frozen."""

    family: Family
    reference: str
    folder: Path
    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    prediction_type: PredictionType
    alphas_cumprod: Tensor
    scheduler_config: Mapping[str, Any]
    device: torch.device
    dtype: torch.dtype

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for file in sorted((self.folder / "unet").glob("*.safetensors")):
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        return digest.hexdigest()

    @property
    def downscale(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)  # type: ignore[no-any-return]

    @property
    def native_size(self) -> int:
        """The side in pixels of the images the base was made for."""
        return self.unet.config.sample_size * self.downscale  # type: ignore[no-any-return]

    @property
    def latent_channels(self) -> int:
        return self.unet.config.in_channels  # type: ignore[no-any-return]

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        return {"text_encoder": self.text_encoder}

    @property
    def parts(self) -> dict[str, nn.Module]:
        return {"unet": self.unet, **self.text_encoders}

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        self.vae.to(self.device)
        distribution = self.vae.encode(images.to(self.device, self.vae.dtype)).latent_dist
        return (distribution.mode() * self.vae.config.scaling_factor).float()  # type: ignore[no-any-return]

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        self.vae.to(self.device)
        latents = latents.to(self.device, self.vae.dtype) / self.vae.config.scaling_factor
        return self.vae.decode(latents).sample.float()  # type: ignore[no-any-return]

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        return Conditioning(self.text_encoder(self.tokens(self.tokenizer, prompts))[0])

    def tokens(self, tokenizer: Any, prompts: Sequence[str]) -> Tensor:
        """Token ids [B, 77] on the device; what is longer is cut."""
        ids = tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids
        return ids.to(self.device)  # type: ignore[no-any-return]

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        prediction = self.unet(noisy.to(self.dtype), timesteps, conditioning.hidden).sample
        return prediction.float()  # type: ignore[no-any-return]

    def release_vae(self) -> None:
        if self.device.type != "cpu":
            self.vae.to("cpu")
            torch.cuda.empty_cache()
