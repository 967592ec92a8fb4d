"""Short runs on a tiny base, in which everything random is in play."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from trainer.fields import nest
from trainer.run import Run
from trainer.settings_file import parse

NewRun = Callable[..., Run]


def new_run(folder: Path, base: Path, dataset: Path, **changes: Any) -> Run:
    """A run of 6 steps; changes are given as `training__steps=3`."""
    values: dict[str, Any] = {
        "base.model": str(base),
        "dataset.folder": dataset,
        "dataset.resolution": 64,
        "dataset.caption_dropout": 0.3,
        "dataset.flip": True,
        "dataset.shuffle_tags": True,
        "dataset.tag_dropout": 0.2,
        "dataset.random_crop": 0.1,
        "dataset.color_jitter": 0.1,
        "dataset.versions": 2,
        "adapter.rank": 2,
        "adapter.alpha": 2,
        "optimizer.learning_rate": 1e-2,
        "loss.noise_offset": 0.1,
        "training.steps": 6,
        "training.batch_size": 2,
        "training.gradient_accumulation": 2,
        "training.checkpoint_every_steps": 2,
        "validation.every_steps": 3,
        "validation.timesteps": 2,
        "samples.prompts": ("a picture",),
        "samples.every_steps": 3,
        "samples.steps": 2,
        "output.precision": "fp32",
    }
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    run = Run(folder)
    run.create(parse(nest(values)))
    return run


def tensors(run: Run) -> dict[str, torch.Tensor]:
    """The finished adapter."""
    return safetensors.torch.load_file(run.adapter_file)


def same(first: Run, second: Run) -> bool:
    """Whether two finished adapters are equal bit for bit."""
    one, other = tensors(first), tensors(second)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
