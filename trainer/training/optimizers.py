"""Optimizers and learning-rate schedules, built from their settings."""

from __future__ import annotations

import contextlib
import importlib
import math
from typing import Any

import torch
from torch import Tensor

from trainer import settings
from trainer.adapter.attach import Attachment
from trainer.adapter.block_rules import block_rates
from trainer.adapter.blocks import BlockWeights
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
    # As its authors advise for diffusion models.
    "prodigy": {"use_bias_correction": True, "safeguard_warmup": True},
}
_LEAST_FOR_PRODIGY = 0.1


def package_of(name: OptimizerName) -> str:
    """The package that an optimizer is from."""
    return _LIBRARIES[name][2]


def build(wanted: settings.Optimizer, attachment: Attachment) -> torch.optim.Optimizer:
    """The optimizer over an adapter's factors. Each group's peak rate is kept in its `peak`.

    Raises:
        UserError: if its library is missing, or Prodigy is asked for several rates.
    """
    groups = _groups(wanted, attachment)
    if wanted.name == "prodigy" and len({group["lr"] for group in groups}) > 1:
        raise UserError(
            "Prodigy finds one rate for all layers.",
            "Leave optimizer.text_encoder_learning_rate, lora_plus_ratio and block_rates unset.",
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
    with contextlib.redirect_stdout(None):  # Prodigy prints what its settings mean
        optimizer: torch.optim.Optimizer = kind(groups, weight_decay=wanted.weight_decay, **options)
    return optimizer


def notices(wanted: settings.Optimizer) -> list[str]:
    """What is odd about the settings, though possible, in words."""
    if wanted.name == "prodigy" and wanted.learning_rate < _LEAST_FOR_PRODIGY:
        return [
            "Prodigy finds a rate itself and multiplies it by optimizer.learning_rate, which is "
            f"{wanted.learning_rate:g}: hardly anything will be learned. 1 is usual."
        ]
    return []


def rate_factor(wanted: settings.Optimizer, step: int, steps: int) -> float:
    """What step `step` of `steps` multiplies the peak rate by, from 0 to 1.

    A linear rise over the first `warmup` share of the steps; then constant, a straight line or a
    power of it to zero, or half cosines to zero (Loshchilov & Hutter, 2016, arXiv:1608.03983). A
    schedule-free optimizer averages instead, so its rate stays. A function of the step alone, so
    there is no scheduler whose state could be lost.
    """
    rise = round(steps * wanted.warmup)
    if step < rise:
        return (step + 1) / (rise + 1)
    if wanted.name == "schedule_free":
        return 1.0
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


def can_step_if(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `step_if` works: torch's fused kernels can leave a step out on the device."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def step_if(finite: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """An optimizer step if `finite`, a flag on the device, is true, and nothing at all if not;
    decided there, without waiting. The flag is what torch's loss scaling calls `found_inf`."""
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    optimizer.step()


def _groups(wanted: settings.Optimizer, attachment: Attachment) -> list[dict[str, Any]]:
    """The factors of the UNet and of the text encoders, by their rates: those of blocks with a rate
    of their own apart, and under LoRA+ those that begin at zero."""
    text_rate = wanted.text_encoder_learning_rate
    if text_rate is None:
        text_rate = wanted.learning_rate * (1.0 if wanted.name == "prodigy" else 0.5)
    times = BlockWeights(block_rates(wanted, attachment.layers))
    ratio = wanted.lora_plus_ratio or 1.0
    groups: dict[tuple[bool, float, bool], dict[str, Any]] = {}
    for path, layer in attachment.layers.items():
        unet = path.startswith("unet.")
        rate = (wanted.learning_rate if unet else text_rate) * times(path)
        for role, factor in layer.factors.items():
            fast = role in layer.fast
            peak = rate * ratio if fast else rate
            group = groups.setdefault(
                (unet, times(path), fast), {"params": [], "lr": peak, "peak": peak}
            )
            group["params"].append(factor)
    # The UNet's first, whichever the model names first: the first group's rate is the one shown.
    return [groups[key] for key in sorted(groups, key=lambda key: (not key[0], -key[1], key[2]))]
