"""Optimizers and learning-rate schedules, built from their settings."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from typing import Any

import torch

from trainer import settings
from trainer.adapter.attach import Attachment
from trainer.errors import UserError
from trainer.settings import OptimizerName

# Where each optimizer lives: its module, its class, and the package to install if it is missing.
_LIBRARIES: dict[OptimizerName, tuple[str, str, str]] = {
    "adamw": ("torch.optim", "AdamW", "torch"),
    "adamw8bit": ("bitsandbytes.optim", "AdamW8bit", "bitsandbytes"),
    "adafactor": ("transformers.optimization", "Adafactor", "transformers"),
    "prodigy": ("prodigyopt", "Prodigy", "prodigyopt"),
    "lion": ("lion_pytorch", "Lion", "lion-pytorch"),
    "schedule_free": ("schedulefree", "AdamWScheduleFree", "schedulefree"),
}
_OPTIONS: dict[OptimizerName, dict[str, Any]] = {
    "adamw": {"fused": True},  # one kernel over all factors instead of several for each
    # Torch's own scales the rate by the weights' size, at which an up matrix of zeros stands still.
    "adafactor": {"scale_parameter": False, "relative_step": False},
    "lion": {"decoupled_weight_decay": True},
    # As its authors advise for diffusion models.
    "prodigy": {"use_bias_correction": True, "safeguard_warmup": True},
}


def build(wanted: settings.Optimizer, attachment: Attachment) -> torch.optim.Optimizer:
    """The optimizer over an adapter's factors. Each group's peak rate is kept in its `peak`.

    Raises:
        UserError: if its library is missing, or Prodigy is asked for several rates.
    """
    groups = list(_groups(wanted, attachment))
    if wanted.name == "prodigy" and len({group["lr"] for group in groups}) > 1:
        raise UserError(
            "Prodigy finds one rate for all layers.",
            "Leave optimizer.text_encoder_learning_rate and optimizer.lora_plus_ratio unset.",
        )
    module, name, package = _LIBRARIES[wanted.name]
    try:
        kind = getattr(importlib.import_module(module), name)
    except ImportError:
        raise UserError(
            f"The optimizer {wanted.name} needs the package {package}.",
            f"Install it by `pip install {package}`, or choose adamw.",
        ) from None
    options = _OPTIONS.get(wanted.name, {})
    optimizer: torch.optim.Optimizer = kind(groups, weight_decay=wanted.weight_decay, **options)
    return optimizer


def rate_factor(wanted: settings.Optimizer, step: int, steps: int) -> float:
    """What step `step` of `steps` multiplies the peak rate by, from 0 to 1.

    A linear rise over the first `warmup` share of the steps; then constant, a straight line or a
    power of it to zero, or half cosines to zero (Loshchilov & Hutter, 2016, arXiv:1608.03983). A
    function of the step alone, so there is no scheduler whose state could be lost.
    """
    rise = round(steps * wanted.warmup)
    if step < rise:
        return (step + 1) / (rise + 1)
    done = (step - rise) / max(1, steps - rise)
    match wanted.schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - done
        case "polynomial":
            return float((1.0 - done) ** wanted.power)
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        case "cosine_restarts":
            return 0.5 * (1 + math.cos(math.pi * (done * wanted.cycles % 1)))


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Sets every group's rate to `factor` times its peak; returns the first group's."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return float(optimizer.param_groups[0]["lr"])


def _groups(wanted: settings.Optimizer, attachment: Attachment) -> Iterator[dict[str, Any]]:
    """Down and up matrices of the UNet and of the text encoders, each with its rate."""
    text_rate = wanted.text_encoder_learning_rate
    if text_rate is None:
        text_rate = wanted.learning_rate * (1.0 if wanted.name == "prodigy" else 0.5)
    for is_unet, rate in ((True, wanted.learning_rate), (False, text_rate)):
        layers = [
            layer
            for path, layer in attachment.layers.items()
            if path.startswith("unet.") == is_unet
        ]
        if layers:
            up_rate = rate * (wanted.lora_plus_ratio or 1.0)
            yield {"params": [layer.down for layer in layers], "lr": rate, "peak": rate}
            yield {"params": [layer.up for layer in layers], "lr": up_rate, "peak": up_rate}
