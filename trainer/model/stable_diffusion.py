"""A Stable Diffusion 1.x or 2.x base: encode images and prompts, predict, decode.

The training loop and the renderer use only what `BaseModel` promises, so they never ask which
family they are working with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from trainer.model.bases import Family
from trainer.model.fingerprints import fingerprint
from trainer.model.prompts import end_to_end, hidden_before, token_ids, weighted

# What parts compute depends on these as well as on their weights.
_VAE_CONFIG = ("scaling_factor", "norm_num_groups", "act_fn")
_TEXT_CONFIG = ("hidden_act", "num_attention_heads", "layer_norm_eps", "eos_token_id")
_TOKENIZER_CONFIG = ("model_max_length", "bos_token_id", "eos_token_id", "pad_token_id")

PredictionType = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True)
class Conditioning:
    """What a batch of prompts says to the UNet: `hidden` [B, chunks · 77, width], and for SDXL the
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
    def place(self) -> Path:
        """Where its weights are: a diffusers folder, or a single file."""

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
        """What an adapter was trained on: the SHA-256 of a single file, as other tools name it, or
        of a folder's files of the UNet, in hex."""

    @property
    def vae_fingerprint(self) -> str:
        """SHA-256 of all that latents depend on besides the image, in hex."""

    @property
    def text_fingerprint(self) -> str:
        """SHA-256 of all that conditioning depends on besides the prompt, in hex; of the text
        encoders without adapters."""

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

    @property
    def tokenizers(self) -> tuple[Any, ...]:
        """One for each text encoder."""

    def encode_prompts(self, prompts: Sequence[str], chunks: int = 1) -> Conditioning:
        """What the first `chunks` times 75 tokens of each prompt say to the UNet (see
        `prompts.chunks_needed`); differentiable with respect to the text encoders."""

    def encode_chunks(
        self, ids: Sequence[Tensor], weights: Sequence[Tensor] | None = None, clip_skip: int = 1
    ) -> Conditioning:
        """What token ids [B, chunks, 77], one tensor for each text encoder, say to the UNet.

        `weights` emphasise tokens (see `prompts.weighted`). `clip_skip` counts as A1111 does: 1
        takes the last layer of the text encoder, 2 the last but one (diffusers calls that 1), and
        the final layer norm follows in each case. SDXL takes the last but one without a norm, so
        1 and 2 are the same there.

        Raises:
            UserError: if the text encoder has not so many layers.
        """

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The predicted noise or velocity [B, C, h, w], for noisy latents at timesteps [B]."""

    def release_vae(self) -> None:
        """Takes the VAE off the device until it is used again."""

    def release_text_encoders(self) -> None:
        """Takes the text encoders off the device until they are used again: worth it while all
        prompts that are asked for are remembered."""


@dataclass
class StableDiffusion:
    """A loaded base of one text encoder; see `BaseModel`. The weights are frozen."""

    family: Family
    reference: str
    place: Path
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
        if self.place.is_file():
            return _sha256(self.place).hex()
        digest = hashlib.sha256()
        for file in sorted((self.place / "unet").glob("*.safetensors")):
            digest.update(_sha256(file))
        return digest.hexdigest()

    @cached_property
    def vae_fingerprint(self) -> str:
        return fingerprint([self.vae], _values(self.vae.config, _VAE_CONFIG))

    @cached_property
    def text_fingerprint(self) -> str:
        encoders = list(self.text_encoders.values())
        configs = [_values(encoder.config, _TEXT_CONFIG) for encoder in encoders]
        words = [json.dumps(t.get_vocab(), sort_keys=True) for t in self.tokenizers]
        marks = [_values(tokenizer, _TOKENIZER_CONFIG) for tokenizer in self.tokenizers]
        return fingerprint(encoders, f"{self.family} {configs} {words} {marks}")

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

    @property
    def tokenizers(self) -> tuple[Any, ...]:
        return (self.tokenizer,)

    def encode_prompts(self, prompts: Sequence[str], chunks: int = 1) -> Conditioning:
        return self.encode_chunks(
            [token_ids(tokenizer, prompts, chunks) for tokenizer in self.tokenizers]
        )

    def encode_chunks(
        self, ids: Sequence[Tensor], weights: Sequence[Tensor] | None = None, clip_skip: int = 1
    ) -> Conditioning:
        (rows,) = ids
        self._fetch_text_encoders()
        skipping = clip_skip > 1
        output = self.text_encoder(
            rows.flatten(0, 1).to(self.device), output_hidden_states=skipping
        )
        hidden = output[0]
        if skipping:
            # Newer versions of transformers have no `text_model` level.
            inner = getattr(self.text_encoder, "text_model", self.text_encoder)
            hidden = inner.final_layer_norm(hidden_before(output, clip_skip))
        if weights is not None:
            hidden = weighted(hidden, weights[0])
        return Conditioning(end_to_end(hidden, rows.shape[1]))

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        prediction = self.unet(noisy.to(self.dtype), timesteps, conditioning.hidden).sample
        return prediction.float()  # type: ignore[no-any-return]

    def release_vae(self) -> None:
        self._release(self.vae)

    def release_text_encoders(self) -> None:
        self._release(*self.text_encoders.values())

    def _fetch_text_encoders(self) -> None:
        for encoder in self.text_encoders.values():
            encoder.to(self.device)

    def _release(self, *parts: nn.Module) -> None:
        if self.device.type == "cpu":
            return
        for part in parts:
            part.to("cpu")
        torch.cuda.empty_cache()


def _values(config: Any, names: Sequence[str]) -> str:
    return json.dumps([getattr(config, name, None) for name in names])


def _sha256(path: Path) -> bytes:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").digest()
