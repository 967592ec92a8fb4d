"""Optimizers and learning-rate schedules, built from their settings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from trainer import settings


def build(
    wanted: settings.Optimizer,
    unet: Sequence[nn.Parameter],
    text_encoders: Sequence[nn.Parameter],
) -> torch.optim.Optimizer:
    """The optimizer over the adapter's factors, one group for the UNet and one for the text
    encoders. Each group's peak rate is kept in its `peak`."""
    rates = (wanted.learning_rate, wanted.text_encoder_learning_rate or wanted.learning_rate)
    groups = [
        {"params": list(parameters), "lr": rate, "peak": rate}
        for parameters, rate in zip((unet, text_encoders), rates, strict=True)
        if parameters
    ]
    # Fused: one kernel over all factors instead of several for each.
    return torch.optim.AdamW(groups, weight_decay=wanted.weight_decay, fused=True)


def rate_factor(wanted: settings.Optimizer, step: int, steps: int) -> float:
    """What step `step` of `steps` multiplies the peak rate by, from 0 to 1.

    A linear rise over the first `warmup` share of the steps, then constant, a straight line to
    zero, or half a cosine to zero (Loshchilov & Hutter, 2016, arXiv:1608.03983, without restarts).
    A function of the step alone, so there is no scheduler whose state could be lost.
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
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Sets every group's rate to `factor` times its peak; returns the first group's."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return float(optimizer.param_groups[0]["lr"])
