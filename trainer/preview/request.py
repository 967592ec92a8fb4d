"""What the preview worker is asked and what it answers; one JSON object a line each way.

The worker (`python -m trainer worker`) reads requests on its standard input and answers on its
standard output. It ends when its input does. Nothing here imports torch, so the web app can speak
with a worker without loading a model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Strength(_Message):
    """An adapter file and how strongly it acts: 0 not at all, 1 as trained.

    `text_encoder` is the strength in the text encoder, by default the same as in the UNet.
    """

    file: Path
    unet: float = Field(default=1.0, ge=-4, le=4)
    text_encoder: float | None = Field(default=None, ge=-4, le=4)


class Drawing(_Message):
    """Draw `prompt`, once for each factor in `strip`.

    Each image has all `adapters`, their strengths multiplied by its factor. All of a strip come
    from one batch with one seed, so that only the strength differs. `width` and `height` are
    pixels, by default the base's own size; `guidance` is the classifier-free guidance scale.
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


class Render(Drawing):
    """Please draw, and save the images as `folder/00.png`, `01.png`, …"""

    type: Literal["render"] = "render"
    id: str = Field(min_length=1, max_length=64)
    folder: Path


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
