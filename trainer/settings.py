"""The settings of a run: one typed, frozen tree, from which every other form of them is read.

The command line's flags, the web form, `settings.json`, tooltips and the documentation all come
from the classes below (see `fields.py` for the walk over their leaves). The docstring under a field
is its help text. An absent value is `None`, never a magic number. Counts of steps are optimizer
steps.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from trainer.files import write_atomically

Precision = Literal["fp32", "bf16", "fp16"]
Quantization = Literal["nf4", "int8"]
OptimizerName = Literal["adamw", "adamw8bit", "adafactor", "prodigy", "lion", "schedule_free"]
Weighting = Literal["uniform", "min_snr", "debiased", "p2"]
Timesteps = Literal["uniform", "logit_normal", "low_discrepancy"]
AdapterKind = Literal["lora", "dora", "loha", "lokr"]
Targets = Literal["attention", "attention-ff", "linear", "linear-conv"]
Texts = tuple[Annotated[str, Field(max_length=300)], ...]
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
    """The base: `embedded`, a diffusers folder, a single `.safetensors` file, or a hub id, such as
    `owner/name`, `owner/name@revision` or `owner/name/file.safetensors`."""
    precision: Precision | None = None
    """Number format of the frozen base; by default bf16 on a GPU that has it, else fp16, and fp32
    on a CPU. The adapter's own weights are always fp32."""
    quantization: Quantization | None = None
    """Packs the linear layers of the frozen UNet: `nf4` to a quarter of 16 bits (QLoRA,
    arXiv:2305.14314), `int8` to half (arXiv:2208.07339). Takes less memory and more time, and needs
    the package bitsandbytes."""
    device: Literal["cuda", "mps", "cpu"] | None = None
    """Where to train; by default the GPU if there is one."""
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """What the base predicts; by default what its configuration or its file says."""
    zero_terminal_snr: bool | None = None
    """Whether the noisiest timestep is pure noise (arXiv:2305.08891), which v-prediction bases may
    be made for; by default what its configuration or its file says."""


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
    shuffle_tags: bool = False
    """Put the comma-separated tags of a caption in another order each time it is used."""
    keep_tags: int = Field(default=0, ge=0, le=100)
    """So many tags at the beginning of a caption are neither shuffled nor dropped."""
    tag_dropout: float = Field(default=0, ge=0, lt=1)
    """Chance of each tag to be left out, each time anew; those kept and the trigger never are."""
    max_tokens: int = Field(default=75, ge=75, le=225, multiple_of=75)
    """How much is read of a caption: a token is a short word or a part of a long one. More than 75
    are read in chunks of 75, as A1111, Forge and ComfyUI read long prompts."""
    flip: bool = False
    """Mirror images left to right half of the time. Not for characters with a left and a right."""
    random_crop: float | None = Field(default=None, ge=0, le=0.5)
    """Crop at random instead of at the centre, taking up to this share more off each side than the
    bucket's shape does; 0.1 is usual, 0 only moves the crop."""
    color_jitter: float | None = Field(default=None, gt=0, le=0.5)
    """Change brightness, contrast and saturation at random, by up to this share; 0.1 is usual. Not
    for styles, whose colours are to be learned."""
    versions: int = Field(default=8, ge=2, le=64)
    """How many versions of each image random crops and colours make, the first being the image as
    it is. All are encoded before training, so more take longer to prepare, but not to train."""
    masks: Literal["off", "files", "alpha"] = "files"
    """What counts in an image: `files` takes a mask where there is one (white counts, black does
    not), `alpha` takes the image's transparency where there is no mask file. See
    `loss.mask_floor`."""
    mask_folder: Path | None = None
    """Folder of masks named as their images; by default the mask of `a.png` is the file
    `a-masklabel.png` beside it."""
    background: str = "#ffffff"
    """Colour behind transparent parts of images, such as `#808080`."""
    class_folder: Path | None = None
    """Folder of regularisation images: ordinary pictures of the same class of things, captioned
    or not, so that the adapter does not change what all of them look like (prior preservation,
    arXiv:2208.12242). Each step then learns from as many of them as from the dataset."""
    class_prompt: str | None = Field(default=None, max_length=4000)
    """What regularisation images show, such as `a person`: the caption of those without one. If no
    class_folder is given, the base draws them from this prompt before training, once."""
    class_images: int = Field(default=50, ge=1, le=10_000)
    """How many regularisation images the base draws."""
    cache: Literal["disk", "memory"] = "disk"
    """Where encoded images and captions are kept. On disk they are found again by the next run,
    under ATELIER_CACHE or the system's folder for caches; a day after their last use they may be
    removed to stay below 20 GiB."""

    @field_validator("background")
    @classmethod
    def _is_colour(cls, background: str) -> str:
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", background):
            raise ValueError("should be a colour such as #808080")
        return background

    @field_validator("trigger")
    @classmethod
    def _stripped(cls, trigger: str | None) -> str | None:
        return (trigger or "").strip() or None


class Adapter(Section):
    """What is added to the base, by default LoRA (Hu et al., 2021, arXiv:2106.09685)."""

    kind: AdapterKind = "lora"
    """LoRA, which every tool loads; DoRA (arXiv:2402.09353), often better at low ranks; LoHa
    (arXiv:2108.06098); or LoKr (arXiv:2309.14859), with tiny files. A1111, Forge and ComfyUI load
    all four; for diffusers convert the others to LoRA."""
    rank: int = Field(default=16, ge=1, le=1024)
    """Width of the low-rank matrices: capacity, and size of the file."""
    alpha: float = Field(default=16, gt=0, le=4096)
    """The adapter is scaled by alpha / rank; blocks of another rank get the same scale."""
    rank_stabilised: bool = False
    """Scale by alpha / √rank of each layer instead (arXiv:2312.03732), for high ranks."""
    targets: Targets = "attention"
    """Layers that get an adapter: attention projections, those and the feed-forward, every linear
    layer of the transformer blocks, or those and the 3x3 convolutions."""
    layers: Texts = Field(default=(), max_length=200)
    """Layers by name instead of targets, as `unet.*.attn2.to_v` or `unet.mid_block`. A star stands
    for anything; each pattern must match something."""
    block_ranks: Texts = Field(default=(), max_length=200)
    """Ranks of single blocks, by the start of their path: `unet.down_blocks.0=4`. The longest that
    fits a layer counts; 0 leaves a block out."""
    lokr_factor: int | None = Field(default=None, ge=2, le=4096)
    """Size of LoKr's small matrix, by which its large one shrinks: 4 makes a larger file that can
    learn more; the default, about the square root of a layer's width, a very small one."""
    dropout: float = Field(default=0, ge=0, lt=1)
    """Share of the hidden activations dropped in training, against overfitting. LoRA and DoRA."""
    rank_dropout: float = Field(default=0, ge=0, lt=1)
    """Share of the rank dropped in training, anew for each image; 0.1 is usual."""
    module_dropout: float = Field(default=0, ge=0, lt=1)
    """Share of the layers whose adapter is left out of a training step; 0.1 is usual."""
    text_encoder: bool = True
    """Train the text encoder as well."""
    text_encoder_rank: int | None = Field(default=None, ge=1, le=1024)
    """Rank of the text encoder's layers; by default that of the others."""
    text_encoder_stop: float | None = Field(default=None, gt=0, le=1_000_000)
    """Stop training the text encoder after this step; below 1, after this share of the steps."""
    start_from: Path | None = None
    """An adapter file to go on from, of the same rank and targets, instead of a new one."""
    max_norm: float | None = Field(default=None, gt=0)
    """Keeps the norm of each layer's change at or below this, against burnt images; 1 is usual."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Saves a moving average of the weights instead of the last ones; 0.99 is usual."""

    @model_validator(mode="after")
    def _has_hidden_activations(self) -> Self:
        if self.dropout and self.kind in ("loha", "lokr"):
            raise ValueError(f"{self.kind} has no hidden activations for dropout; set rank_dropout")
        return self

    def text_encoder_steps(self, steps: int) -> int:
        """How many of a run's steps train the text encoder."""
        stop = self.text_encoder_stop
        if not self.text_encoder or stop is None:
            return steps * self.text_encoder
        return min(steps, round(stop * steps if stop < 1 else stop))


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
    block_rates: Texts = Field(default=(), max_length=200)
    """Rates of single blocks, as multiples: `unet.down_blocks=0.5` learns half as fast. The longest
    that fits a layer counts; 0 freezes it."""
    schedule: Literal["constant", "linear", "cosine", "cosine_restarts", "polynomial"] = "cosine"
    """How the learning rate falls after the warm-up; schedule-free AdamW's does not."""
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
    mask_floor: float = Field(default=0.1, ge=0, le=1)
    """What the masked-out part of an image counts; a little keeps its place in the picture."""
    prior_weight: float = Field(default=1.0, gt=0, le=10)
    """What regularisation images count, compared with those of the dataset."""
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

    name: str = Field(default="adapter", min_length=1, max_length=100)
    """Name shown by tools that load the file."""
    precision: Precision = "fp16"
    """Number format of the file."""
    private: bool = False
    """Leave paths, captions and tags out of the file's metadata."""

    @field_validator("name")
    @classmethod
    def _is_name(cls, name: str) -> str:
        if re.search(r"[/\\\x00-\x1f]", name):
            raise ValueError("should be a name, without slashes and control characters")
        return name


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
