"""The settings of a run: one typed, frozen tree, from which every other form of them is read.

The command line's flags, the web form, `settings.json`, tooltips and the documentation all come
from the classes below (see `fields.py` for the walk over their leaves). The docstring under a field
is its help text. An absent value is `None`, never a magic number. Counts of steps are optimizer
steps.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trainer.errors import Problem, SettingsError
from trainer.fields import problems_of
from trainer.files import write_atomically

FORMAT_VERSION = 1

Precision = Literal["fp32", "bf16", "fp16"]
OptimizerName = Literal["adamw", "adamw8bit", "adafactor", "prodigy", "lion", "schedule_free"]
Weighting = Literal["uniform", "min_snr", "debiased", "p2"]
Timesteps = Literal["uniform", "logit_normal", "low_discrepancy"]
Targets = Literal["attention", "attention-ff", "linear", "linear-conv"]
Prompts = tuple[Annotated[str, Field(max_length=4000)], ...]


class Section(BaseModel):
    """A frozen group of settings that refuses names it does not know."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        validate_default=True,
    )


class Base(Section):
    """The model that the adapter is trained on."""

    model: str = Field(default="embedded", min_length=1, max_length=1000)
    """The base: `embedded`, a hub id, a diffusers folder, or a single `.safetensors` file."""
    precision: Precision | None = None
    """Number format of the frozen base; by default bf16 on a GPU that has it, else fp16, and fp32
    on a CPU. The adapter's own weights are always fp32."""
    device: Literal["cuda", "mps", "cpu"] | None = None
    """Where to train; by default the GPU if there is one."""
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """What the base predicts; by default what its scheduler configuration says."""


class Dataset(Section):
    """The captioned images to learn from."""

    folder: Path | None = None
    """Folder of images with same-named `.txt` captions."""
    resolution: int = Field(default=512, ge=32, le=2048, multiple_of=8)
    """Images are scaled to about this many pixels squared, in buckets that keep their shape."""
    trigger: str | None = Field(default=None, max_length=200)
    """A word put in front of every caption that lacks it, by which prompts call the adapter."""
    caption_dropout: float = Field(default=0.05, ge=0, le=1)
    """Share of captions replaced by an empty one, so that guidance keeps working."""
    flip: bool = False
    """Mirror images left to right half of the time. Not for characters with a left and a right."""


class Adapter(Section):
    """What is added to the base: LoRA (Hu et al., 2021, arXiv:2106.09685)."""

    rank: int = Field(default=16, ge=1, le=1024)
    """Width of the low-rank matrices: capacity, and size of the file."""
    alpha: float = Field(default=16, gt=0, le=4096)
    """The adapter is scaled by alpha / rank."""
    targets: Targets = "attention"
    """Layers that get an adapter: attention projections, those and the feed-forward, every linear
    layer of the transformer blocks, or those and the 3x3 convolutions."""
    text_encoder: bool = True
    """Train the text encoder's attention as well."""
    start_from: Path | None = None
    """An adapter file to go on from, of the same rank and targets, instead of a new one."""
    max_norm: float | None = Field(default=None, gt=0)
    """Keeps the norm of each layer's change at or below this, against burnt images; 1 is usual."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Saves a moving average of the weights instead of the last ones; 0.99 is usual."""


class Optimizer(Section):
    """How the adapter's weights move."""

    name: OptimizerName = "adamw"
    """AdamW (arXiv:1711.05101), its 8-bit form (arXiv:2110.02861), Adafactor (arXiv:1804.04235),
    Prodigy, which finds the rate itself (arXiv:2306.06101; set the rate to 1), Lion
    (arXiv:2302.06675; a third of the rate) or schedule-free AdamW (arXiv:2405.15682)."""
    learning_rate: float = Field(default=1e-4, gt=0, le=10)
    """Peak learning rate of the UNet's adapter."""
    text_encoder_learning_rate: float | None = Field(default=None, gt=0, le=10)
    """Peak learning rate of the text encoder's adapter; by default half the UNet's."""
    lora_plus_ratio: float | None = Field(default=None, ge=1, le=64)
    """LoRA+ (arXiv:2402.12354): the up matrices learn this many times as fast; 16 is usual."""
    schedule: Literal["constant", "linear", "cosine", "cosine_restarts", "polynomial"] = "cosine"
    """How the learning rate falls after the warm-up."""
    cycles: int = Field(default=3, ge=1, le=100)
    """Number of falls of `cosine_restarts`."""
    power: float = Field(default=2.0, gt=0, le=10)
    """Exponent of `polynomial`: 1 is a straight line."""
    warmup: float = Field(default=0.05, ge=0, le=0.5)
    """Share of the steps over which the learning rate rises from zero."""
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    """Decoupled weight decay."""
    max_gradient_norm: float | None = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm; none leaves them as they are."""


class Loss(Section):
    """What is minimised: the error of the predicted noise or velocity."""

    weighting: Weighting = "min_snr"
    """How timesteps count: all alike, min-SNR (arXiv:2303.09556), debiased (arXiv:2310.08442) or
    P2 (arXiv:2204.00227)."""
    min_snr_gamma: float = Field(default=5.0, gt=0)
    """The signal-to-noise ratio above which min-SNR counts no more."""
    huber_delta: float | None = Field(default=None, gt=0, le=10)
    """Errors above this count linearly rather than squared, which forgives odd images
    (pseudo-Huber, arXiv:2403.16728); 0.1 is usual, none is the mean squared error."""
    noise_offset: float | None = Field(default=None, gt=0, le=1)
    """Adds a constant per channel to the noise, for very dark or bright styles; 0.0357 is usual."""
    multires_noise: float | None = Field(default=None, gt=0, lt=1)
    """Adds noise of coarser and coarser grain, each this much weaker; 0.3 is usual."""
    input_perturbation: float | None = Field(default=None, gt=0, le=1)
    """Noise on the noise that the UNet sees but need not predict (arXiv:2301.11706); 0.1 is
    usual."""


class Training(Section):
    """The run itself."""

    steps: int = Field(default=1500, ge=1, le=1_000_000)
    """Optimizer steps in all."""
    batch_size: int = Field(default=1, ge=1, le=256)
    """Images in one forward and backward pass."""
    gradient_accumulation: int = Field(default=1, ge=1, le=256)
    """Passes whose gradients are averaged into one step: a larger batch in the same memory."""
    timesteps: Timesteps = "low_discrepancy"
    """How noise levels are drawn: each alone, more from the middle (logit-normal,
    arXiv:2403.03206), or evenly spread over batch and steps, which learns more steadily."""
    min_timestep: int = Field(default=0, ge=0, le=999)
    """The least noisy timestep to train on."""
    max_timestep: int = Field(default=999, ge=0, le=999)
    """The noisiest timestep to train on."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Step k draws its noise, timesteps and dropout from (seed, k)."""
    checkpoint_every_steps: int = Field(default=250, ge=1)
    """Steps between checkpoints; a run can be resumed from the newest."""
    keep_checkpoints: int = Field(default=4, ge=1, le=1000)
    """States to resume from that are kept; the adapters of all checkpoints are."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third less memory, a quarter slower."""

    @model_validator(mode="after")
    def _timesteps_in_order(self) -> Self:
        if self.min_timestep > self.max_timestep:
            raise ValueError("min_timestep must not be above max_timestep")
        return self


class Validation(Section):
    """The loss on images that are not trained on, at fixed noise and timesteps."""

    held_out: int | None = Field(default=None, ge=0, le=1000)
    """Images set aside for validation; by default one in six, none of fewer than six."""
    every_steps: int = Field(default=250, ge=1)
    """Steps between validations. The first is before training, the last after it."""
    timesteps: int = Field(default=8, ge=1, le=64)
    """Noise levels at which each image is measured, spread evenly."""
    patience: int | None = Field(default=None, ge=1, le=100)
    """Stop early after so many validations in a row without a new lowest loss."""


class Samples(Section):
    """Images drawn while training, so that one sees what is being learned."""

    prompts: Prompts = Field(default=(), max_length=32)
    """One image is drawn for each prompt."""
    negative_prompt: str = Field(default="", max_length=4000)
    """What the images should not show."""
    every_steps: int = Field(default=250, ge=1)
    """Steps between samples."""
    strength: float = Field(default=1.0, ge=-4, le=4)
    """Strength of the adapter in the samples."""
    steps: int = Field(default=20, ge=1, le=1000)
    """Denoising steps of an image."""
    guidance: float = Field(default=7.0, ge=1, le=50)
    """Classifier-free guidance scale (Ho & Salimans, 2022, arXiv:2207.12598); 1 turns it off."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the first image; the next prompts count on from it."""


class Output(Section):
    """The adapter file."""

    name: str = Field(
        default="adapter", min_length=1, max_length=100, pattern=r"^[^/\\\x00-\x1f]+$"
    )
    """Name shown by tools that load the file."""
    precision: Precision = "fp16"
    """Number format of the file."""
    private: bool = False
    """Leave paths, captions and tags out of the file's metadata."""


class Settings(Section):
    """Everything that decides what a run does."""

    version: Literal[1] = 1
    """Version of this format."""
    base: Base = Base()
    dataset: Dataset = Dataset()
    adapter: Adapter = Adapter()
    optimizer: Optimizer = Optimizer()
    loss: Loss = Loss()
    training: Training = Training()
    validation: Validation = Validation()
    samples: Samples = Samples()
    output: Output = Output()

    def to_json(self) -> str:
        """The tree as indented JSON, read back by `from_json` as an equal tree."""
        return self.model_dump_json(indent=2) + "\n"

    def save(self, path: Path) -> None:
        """Writes the tree to `path`, whole or not at all."""
        write_atomically(path, self.to_json().encode())


# Each entry turns a tree of version n into one of version n + 1.
_MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


def parse(tree: dict[str, Any]) -> Settings:
    """Settings from a nested dict of plain values.

    Raises:
        SettingsError: with every problem found, each under its dotted name.
    """
    version = tree.get("version", FORMAT_VERSION)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise SettingsError([Problem("version", f"must be a number from 1 to {FORMAT_VERSION}")])
    if version > FORMAT_VERSION:
        raise SettingsError(
            [
                Problem(
                    "version",
                    f"is {version}, but this program knows versions up to "
                    f"{FORMAT_VERSION}; install a newer LoRA Atelier",
                )
            ]
        )
    for step in range(version, FORMAT_VERSION):
        tree = _MIGRATIONS[step](tree)
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise SettingsError(problems_of(error, Settings)) from None


def load(path: Path) -> Settings:
    """Settings from a JSON file.

    Raises:
        SettingsError: if the file is missing, is not JSON, or holds wrong settings.
    """
    return parse(load_tree(path))


def load_tree(path: Path) -> dict[str, Any]:
    """The nested dict in a JSON settings file, unchecked."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SettingsError([Problem("", f"cannot read {path}: {error.strerror}")]) from None
    except ValueError as error:
        raise SettingsError([Problem("", f"{path} is not JSON: {error}")]) from None
    if not isinstance(tree, dict):
        raise SettingsError([Problem("", f"{path} must hold a JSON object")])
    return tree
