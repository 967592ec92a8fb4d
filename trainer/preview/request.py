"""What the preview worker is asked and what it answers; one JSON object a line each way.

The worker (`python -m trainer worker`) reads requests on its standard input and answers on its
standard output. It ends when its input does. Nothing here imports torch, so the web app can speak
with a worker without loading a model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from trainer.preview.mixing import SWITCH_EVERY, Mixing
from trainer.preview.samplers import Sampler
from trainer.preview.schedule import CONSTANT, Schedule


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Strength(_Message):
    """An adapter file and how strongly it acts: 0 not at all, 1 as trained.

    `text_encoder` is the strength in the text encoder, by default the same as in the UNet.
    `blocks` weigh both by block: `unet.up_blocks=0.5`, or a list of factors (see `block_rules`).
    `schedule` makes the strength in the UNet a function of the denoising step. `mask` is an image
    of any size that keeps the adapter to a part of the picture: it acts where that is white.
    """

    file: Path
    unet: float = Field(default=1.0, ge=-4, le=4)
    text_encoder: float | None = Field(default=None, ge=-4, le=4)
    blocks: tuple[Annotated[str, Field(min_length=1, max_length=500)], ...] = Field(
        default=(), max_length=100
    )
    schedule: Schedule = CONSTANT
    mask: Path | None = None

    @property
    def in_text(self) -> float:
        """The strength in the text encoder."""
        return self.unet if self.text_encoder is None else self.text_encoder


class Drawing(_Message):
    """Draw `prompt`, once for each factor in `strip`.

    Each image has all `adapters`, their strengths multiplied by its factor; they act together as
    `mixing` says (see `mixing.py`), `switch_every` steps each with "switch". All of a strip come
    from one batch with one seed, so that only the strength differs. Prompts may be of any length
    and weigh words (see `emphasis.py`). `guidance` is the classifier-free guidance scale.
    `clip_skip` counts as in A1111: 1 for the text encoder's last layer, 2 for the last but one;
    SDXL begins at the last but one, so that 1 and 2 are the same there.

    `width` and `height` are pixels, by default the base's own size. With an `initial_image` the
    picture begins there, and `denoise` is the share of the steps that are taken: 1 leaves little
    of it, 0.3 changes details. Sizes left out follow its shape then.
    """

    base: str = Field(min_length=1, max_length=1000)
    adapters: tuple[Strength, ...] = Field(default=(), max_length=16)
    prompt: str = Field(max_length=4000)
    negative_prompt: str = Field(default="", max_length=4000)
    strip: tuple[Annotated[float, Field(ge=-4, le=4)], ...] = Field(
        default=(1.0,), min_length=1, max_length=16
    )
    seed: int = Field(default=0, ge=0, lt=2**32)
    steps: int = Field(default=20, ge=1, le=1000)
    guidance: float = Field(default=7.0, ge=1, le=50)
    width: int | None = Field(default=None, ge=32, le=2048, multiple_of=8)
    height: int | None = Field(default=None, ge=32, le=2048, multiple_of=8)
    sampler: Sampler = "ddim"
    clip_skip: int = Field(default=1, ge=1, le=12)
    mixing: Mixing = "sum"
    switch_every: int = Field(default=SWITCH_EVERY, ge=1, le=1000)
    initial_image: Path | None = None
    denoise: float = Field(default=0.75, gt=0, le=1)


class Render(Drawing):
    """Please draw, and save the images as `folder/00.png`, `01.png`, …

    Each carries its recipe (see `recipe.py`), which tells the prompt and the names and places of
    files; not if it is `private`.
    """

    type: Literal["render"] = "render"
    id: str = Field(min_length=1, max_length=64)
    folder: Path
    private: bool = False


class Cancel(_Message):
    """Please give up the request with this id; one that is done already is left as it is."""

    type: Literal["cancel"] = "cancel"
    id: str


class Loading(_Message):
    """The base is being loaded for request `id`."""

    type: Literal["loading"] = "loading"
    id: str
    base: str


class Progress(_Message):
    """`done` of `total` denoising steps of request `id`."""

    type: Literal["progress"] = "progress"
    id: str
    done: int
    total: int


class Rendered(_Message):
    """Request `id` is done: its images in the order of the strip, and the seconds it took."""

    type: Literal["rendered"] = "rendered"
    id: str
    files: tuple[Path, ...]
    seconds: float


class Cancelled(_Message):
    """Request `id` was given up."""

    type: Literal["cancelled"] = "cancelled"
    id: str


class Refused(_Message):
    """Request `id` cannot be done: why, and what to do."""

    type: Literal["refused"] = "refused"
    id: str
    message: str
    advice: str = ""


Request = Annotated[Render | Cancel, Field(discriminator="type")]
Answer = Annotated[Loading | Progress | Rendered | Cancelled | Refused, Field(discriminator="type")]
REQUEST: TypeAdapter[Request] = TypeAdapter(Request)
ANSWER: TypeAdapter[Answer] = TypeAdapter(Answer)
