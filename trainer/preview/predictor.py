"""What the UNet predicts at a step, with adapters at their strengths, mixed and guided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer.adapter.attach import Attachment
from trainer.adapter.gates import Strength
from trainer.model.stable_diffusion import BaseModel, Conditioning
from trainer.preview.emphasis import encode
from trainer.preview.mixing import blend, passes
from trainer.preview.schedule import CONSTANT, Schedule
from trainer.preview.start import latent_mask

if TYPE_CHECKING:
    from trainer.preview.render import Picture


@dataclass(frozen=True)
class PartStrength:
    """The strength of one adapter in each part of the model; in the UNet also when and where.

    `blocks` has a factor on it for each layer by module path, 1 for those that it lacks. The prompt
    is encoded once, before the first step, so that `schedule` and `mask` have no say in the text
    encoder. `mask` is an image file.
    """

    unet: float = 1.0
    text_encoder: float = 1.0
    schedule: Schedule = CONSTANT
    mask: Path | None = None
    blocks: Mapping[str, float] = field(default_factory=dict)


class Predictor:
    """Predictions for a strip: one batch, in which every image has its own factor on all strengths.

    `latents` [1, C, h, w] are those that the images begin with. The attachment's strengths are left
    as they were last set here.

    Raises:
        UserError: if the prompt or a mask cannot be used.
    """

    def __init__(
        self,
        model: BaseModel,
        picture: Picture,
        attachment: Attachment | None,
        strengths: Mapping[str, PartStrength],
        strip: Sequence[float],
        latents: Tensor,
    ) -> None:
        self._model = model
        self._picture = picture
        self._attachment = attachment
        self._strengths = strengths
        self._factor = _factor(strip, copies=2 if picture.guided else 1)
        self._in_unet: dict[str, float] | None = None
        self._masks = _masks(strengths, latents)
        self._set({name: strength.unet for name, strength in strengths.items()})
        prompts = [picture.negative_prompt] * len(strip) * picture.guided
        prompts += [picture.prompt] * len(strip)
        self._conditioning: Conditioning = encode(model, prompts, picture.clip_skip)

    def predict(self, inputs: Tensor, timestep: Tensor, step: int, steps: int) -> Tensor:
        """The prediction [B, C, h, w] for scaled latents at a timestep, which belongs to step 0 ≤
        `step` < `steps`. Guidance is applied after mixing."""
        picture = self._picture
        strengths = {
            name: strength.unet * strength.schedule.factor(step, steps)
            for name, strength in self._strengths.items()
        }
        mixed = passes(picture.mixing, tuple(strengths), self._masks, step, picture.switch_every)
        both = torch.cat([inputs, inputs]) if picture.guided else inputs
        predictions = []
        for one in mixed:
            self._set({name: strengths[name] for name in one.adapters})
            prediction = self._model.predict(both, timestep, self._conditioning)
            predictions.append((prediction, one.weight))
        prediction = blend(predictions)
        if not picture.guided:
            return prediction
        without, with_ = prediction.chunk(2)
        return without + picture.guidance * (with_ - without)

    def _set(self, in_unet: dict[str, float]) -> None:
        """Sets the strengths in the UNet, if they are not those set before; adapters that are not
        named are off there."""
        if self._attachment is None or in_unet == self._in_unet:
            return
        self._attachment.set(
            {
                name: self._of(strength, in_unet.get(name, 0.0))
                for name, strength in self._strengths.items()
            }
        )
        self._in_unet = in_unet

    def _of(self, strength: PartStrength, in_unet: float) -> Strength:
        made: dict[float, float | Tensor] = {0.0: 0.0}  # which turns the layer off, at no cost

        def at(path: str) -> float | Tensor:
            part = in_unet if path.startswith("unet.") else strength.text_encoder
            number = part * strength.blocks.get(path, 1.0)
            if number not in made:
                made[number] = number * self._factor
            return made[number]

        return at


def _masks(strengths: Mapping[str, PartStrength], latents: Tensor) -> dict[str, Tensor]:
    """The region masks of those adapters that are kept to a part of the picture."""
    found = {
        name: latent_mask(strength.mask, latents)
        for name, strength in strengths.items()
        if strength.mask is not None
    }
    return {name: mask for name, mask in found.items() if mask is not None}


def _factor(strip: Sequence[float], copies: int) -> float | Tensor:
    """The factor on all strengths: a number, or one for each image of the batch."""
    if len(strip) == 1:
        return strip[0]
    return torch.tensor(strip, dtype=torch.float32).repeat(copies)
