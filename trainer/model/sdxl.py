"""An SDXL base: two text encoders, a pooled embedding, and the image's size as conditioning
(Podell et al., 2023, arXiv:2307.01952, §2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trainer.model.prompts import end_to_end, hidden_before, weighted
from trainer.model.stable_diffusion import Conditioning, StableDiffusion


@dataclass
class StableDiffusionXL(StableDiffusion):
    """A loaded SDXL base; see `BaseModel`."""

    text_encoder_2: Any = field(kw_only=True)
    tokenizer_2: Any = field(kw_only=True)

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        return {"text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2}

    @property
    def tokenizers(self) -> tuple[Any, ...]:
        return (self.tokenizer, self.tokenizer_2)

    def encode_chunks(
        self, ids: Sequence[Tensor], weights: Sequence[Tensor] | None = None, clip_skip: int = 1
    ) -> Conditioning:
        """Both encoders' last but one hidden states side by side; the second's pooled text, of the
        first chunk."""
        self._fetch_text_encoders()
        rows = [part.flatten(0, 1).to(self.device) for part in ids]
        first = self.text_encoder(rows[0], output_hidden_states=True)
        second = self.text_encoder_2(rows[1], output_hidden_states=True)
        parts = [hidden_before(output, max(clip_skip, 2)) for output in (first, second)]
        if weights is not None:
            parts = [weighted(part, tokens) for part, tokens in zip(parts, weights, strict=True)]
        hidden = torch.cat(parts, dim=-1)
        chunks = ids[0].shape[1]
        return Conditioning(end_to_end(hidden, chunks), second.text_embeds[::chunks])

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        prediction = self.unet(
            noisy.to(self.dtype),
            timesteps,
            conditioning.hidden,
            added_cond_kwargs={
                "text_embeds": conditioning.pooled,
                "time_ids": self._sizes(noisy),
            },
        ).sample
        return prediction.float()  # type: ignore[no-any-return]

    def _sizes(self, noisy: Tensor) -> Tensor:
        """[B, 6]: original size, place of the crop and target size, height first. The original is
        said to be as large as the target and not cropped: that is what good images look like."""
        height, width = (side * self.downscale for side in noisy.shape[-2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], device=noisy.device)
        return sizes.to(self.dtype).expand(len(noisy), -1)
