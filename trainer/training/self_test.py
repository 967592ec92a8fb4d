"""The last check of a run: its file, read back, does what the model in memory does."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from trainer.adapter.attach import attach
from trainer.errors import RunFailed
from trainer.model.quantise import rounds_inputs
from trainer.preview.session import load_for
from trainer.randomness import generator
from trainer.training.prepare import Prepared

# Rounding the factors to the file's precision moves the output by about this much of its change.
_LARGEST_DIFFERENCE = 0.05
_SIDE = 8


def self_test(prepared: Prepared, file: Path) -> None:
    """Compares the output of the trained layers with that of the file's, on fixed noise.

    Raises:
        AdapterError: if the file cannot be read or does not fit the base.
        RunFailed: if it does something else than the layers in memory.
    """
    model, trained = prepared.model, prepared.attachment
    live = _output(prepared)
    trained.set({})
    base = _output(prepared)
    trained.set({"new": 1.0})
    trained.detach()
    try:
        with attach(model.parts, {"file": load_for(model.family, model.parts, file)}):
            read = _output(prepared)
    finally:
        trained.attach()
    change, difference = float((live - base).norm()), float((read - live).norm())
    # Where the adapter does little, the model's own rounding is all there is to see.
    step = 1 / 127 if rounds_inputs(model.unet) else 4 * torch.finfo(model.dtype).eps
    rounding = max(5e-5, step) * float(base.norm())
    if not difference <= _LARGEST_DIFFERENCE * change + rounding:
        raise RunFailed(
            f"{file.name}, read back, differs from the trained adapter by {difference:.2g}, where "
            f"the adapter changes the output by {change:.2g}.",
            "Set output.precision to fp32, then resume.",
        )


@torch.no_grad()
def _output(prepared: Prepared) -> Tensor:
    """The model's prediction [1, C, 8, 8] for fixed noise and the first training caption."""
    model = prepared.model
    noisy = torch.randn(
        (1, model.latent_channels, _SIDE, _SIDE), generator=generator(0, "self-test")
    ).to(model.device)
    timestep = torch.full((1,), len(model.alphas_cumprod) // 2, device=model.device)
    return model.predict(
        noisy, timestep, model.encode_prompts([prepared.training.images[0].caption])
    )
