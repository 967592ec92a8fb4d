"""Good settings for the usual jobs: a few values each, over the defaults of `settings.py`.

The figures for Stable Diffusion are the middle ground of what trainers in the field ship; those of
the embedded base are measured on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from trainer.fields import nest
from trainer.settings import Settings
from trainer.settings_file import parse

Family = Literal["embedded", "sd15", "sdxl"]
Goal = Literal["character", "object", "style"]


@dataclass(frozen=True)
class Preset:
    """Values by dotted name, to be laid over the defaults."""

    name: str
    title: str
    family: Family
    goal: Goal
    values: dict[str, Any]

    def settings(self) -> Settings:
        """The whole tree with this preset's values in it."""
        return parse(nest(self.values))


_TITLES: dict[Family, str] = {"embedded": "Embedded base", "sd15": "SD 1.5", "sdxl": "SDXL"}

_FAMILIES: dict[Family, dict[str, Any]] = {
    "embedded": {
        "base.model": "embedded",
        "dataset.resolution": 64,
        "adapter.rank": 8,
        "adapter.alpha": 8,
        "dataset.caption_dropout": 0.1,
        "optimizer.learning_rate": 1e-3,
        "optimizer.text_encoder_learning_rate": 1e-3,
        "optimizer.warmup": 0.1,
        "loss.weighting": "uniform",
        "training.steps": 200,
        "training.batch_size": 4,
        "training.checkpoint_every_steps": 50,
        "validation.every_steps": 50,
        "samples.every_steps": 50,
        "samples.guidance": 3.5,
    },
    "sd15": {
        "base.model": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "dataset.resolution": 512,
        "adapter.rank": 16,
        "adapter.alpha": 16,
        "optimizer.learning_rate": 1e-4,
        "training.batch_size": 2,
    },
    "sdxl": {
        "base.model": "stabilityai/stable-diffusion-xl-base-1.0",
        "dataset.resolution": 1024,
        "adapter.rank": 16,
        "adapter.alpha": 16,
        "adapter.text_encoder": False,
        "optimizer.learning_rate": 1e-4,
        "training.gradient_checkpointing": True,
    },
}

_GOALS: dict[tuple[Family, Goal], dict[str, Any]] = {
    ("embedded", "character"): {},
    ("embedded", "object"): {},
    # Layers left out at random make a style plain below strength 1 as well.
    ("embedded", "style"): {"adapter.rank": 16, "adapter.alpha": 16, "adapter.module_dropout": 0.2,
                            "optimizer.learning_rate": 8e-4, "loss.prior_weight": 4.0,
                            "training.min_timestep": 200, "training.steps": 300},
    ("sd15", "character"): {"training.steps": 1500},
    ("sd15", "object"): {"training.steps": 1000},
    ("sd15", "style"): {
        "adapter.rank": 32,
        "adapter.alpha": 16,
        "training.steps": 2000,
        "dataset.flip": True,
    },
    ("sdxl", "character"): {"training.steps": 1500},
    ("sdxl", "object"): {"training.steps": 1000},
    ("sdxl", "style"): {"adapter.rank": 32, "adapter.alpha": 16, "training.steps": 2000,
                        "dataset.flip": True},
}  # fmt: skip

PRESETS: dict[str, Preset] = {
    f"{family}-{goal}": Preset(
        name=f"{family}-{goal}",
        title=f"{_TITLES[family]}: {goal}",
        family=family,
        goal=goal,
        values={**_FAMILIES[family], **values},
    )
    for (family, goal), values in _GOALS.items()
}
