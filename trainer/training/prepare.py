"""Everything that is made once before the first step: data, base, adapter, optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from trainer import events
from trainer.adapter.attach import Attachment, Parts, attach_new, planned
from trainer.adapter.footprint import file_bytes
from trainer.adapter.header import read_header
from trainer.data.batches import Batches
from trainer.data.dataset import Scan
from trainer.data.latents import Encoded
from trainer.errors import AdapterError, BaseModelError, DatasetError
from trainer.model.load import load
from trainer.model.quantise import parameters_of
from trainer.model.stable_diffusion import BaseModel
from trainer.randomness import generator
from trainer.settings import Settings
from trainer.training import factors, optimizers
from trainer.training.checkpoint import Checkpoint
from trainer.training.conditions import Conditions
from trainer.training.contents import Contents, contents, name_of
from trainer.training.factors import Average
from trainer.training.material import gather
from trainer.training.prior import Progress
from trainer.training.start import start
from trainer.training.validation import Probe

_FEWEST_TO_SPLIT = 6
_SHARE_HELD_OUT = 6  # one in so many


@dataclass
class Pace:
    """How steps are being done, where a run had to adapt; saved with its checkpoints.

    `pieces` are the parts in which each batch is done, `recompute` whether activations are
    recomputed, `rate` what the learning rate is multiplied by.
    """

    pieces: int = 1
    recompute: bool = False
    rate: float = 1.0


@dataclass(frozen=True)
class Prepared:
    """What the loop works with. `held_out` is None if no image was set aside; `unreadable` are
    images that vanished or broke before they were encoded."""

    model: BaseModel
    attachment: Attachment
    batches: Batches
    conditions: Conditions
    training: Probe
    held_out: Probe | None
    optimizer: AcceleratedOptimizer
    accelerator: Accelerator
    average: Average | None
    pace: Pace
    unreadable: Mapping[Path, DatasetError]
    folder: Path
    contents: Contents

    @cached_property
    def factors(self) -> dict[str, nn.Parameter]:
        return factors.named(self.attachment.layers)

    def as_used(self) -> AbstractContextManager[None]:
        """Within the block the adapter is as it would be saved; see `factors.as_used`."""
        return factors.as_used(self.factors, self.optimizer, self.average)

    def train_text_encoders(self, train: bool) -> None:
        """Lets the text encoders' factors learn from here on, or not: then they get no gradient,
        which optimizers pass over, and drop nothing."""
        for path, layer in self.attachment.layers.items():
            if not path.startswith("unet."):
                layer.dropout = self.attachment.dropout if train else None
                for factor in layer.factors.values():
                    factor.requires_grad_(train)

    def recompute_activations(self) -> None:
        """Turns on gradient checkpointing (Chen et al., 2016, arXiv:1604.06174)."""
        self.model.unet.enable_gradient_checkpointing()
        self.model.unet.train()  # its blocks recompute in training mode only; it has no dropout

    @property
    def images(self) -> int:
        return len(self.training.images)

    @property
    def trained_parameters(self) -> int:
        return sum(factor.numel() for factor in self.factors.values())

    @property
    def base_parameters(self) -> int:
        whole = sum(parameters_of(part) for part in self.model.parts.values())
        return whole - self.trained_parameters

    def summary(self, wanted: Settings, environment: dict[str, str | int]) -> events.Ready:
        """What is about to be trained, for people to see before it begins."""
        packed = [wanted.base.quantization] if wanted.base.quantization else []
        return events.Ready(
            device=str(self.model.device),
            precision=" and ".join([str(self.model.dtype).removeprefix("torch."), *packed]),
            steps=wanted.training.steps,
            images=self.images,
            held_out=len(self.held_out.images) if self.held_out else 0,
            trained_parameters=self.trained_parameters,
            base_parameters=self.base_parameters,
            file_bytes=file_bytes(self.attachment.plans, wanted, self.model.family),
            environment=environment,
        )


def prepare(
    wanted: Settings, scanned: Scan, progress: Progress, saved: Checkpoint | None
) -> Prepared:
    """Loads the base, encodes the images, attaches an adapter and builds its optimizer.

    A run that has `saved` a checkpoint needs no adapter to start from, and keeps the images aside
    that it had set aside. What was saved is put in place by `go_on_from`.

    Raises:
        BaseModelError, UserError, OutOfMemory: see `model.load` and `adapter.attach`.
    """
    if wanted.adapter.start_from is not None and saved is None:
        read_header(wanted.adapter.start_from)  # before images are encoded for nothing
    progress(f"Loading the base {wanted.base.model}", 0, 1)
    model = load(wanted.base)
    accelerator = _accelerator(model)
    parts = {"unet": model.unet}
    if wanted.adapter.text_encoder:
        parts |= model.text_encoders
    learn = any(not path.startswith("unet.") for path in planned(parts, wanted.adapter))
    material = gather(model, wanted, scanned, progress, text_encoders_learn=learn)
    read = material.conditions
    folder = wanted.dataset.folder or Path()
    aside = (
        [folder.absolute() / name for name in saved.extra.get("held_out", [])] if saved else None
    )
    kept, held_out = split(material.images, wanted, aside)
    attachment = _attach(parts, wanted, model, fresh=saved is None)
    named, decay = factors.named(attachment.layers), wanted.adapter.ema_decay
    seed, timesteps = wanted.training.seed, wanted.validation.timesteps
    at_once = wanted.training.batch_size
    prepared = Prepared(
        model=model,
        attachment=attachment,
        batches=Batches(kept, wanted, material.prior),
        conditions=read,
        training=Probe("training", kept, timesteps, seed, at_once, read),
        held_out=Probe("held-out", held_out, timesteps, seed, at_once, read) if held_out else None,
        optimizer=accelerator.prepare(optimizers.build(wanted.optimizer, attachment)),
        accelerator=accelerator,
        average=factors.Average(named, decay) if decay is not None else None,
        pace=Pace(),
        unreadable=material.unreadable,
        folder=folder,
        contents=contents(
            folder,
            [one for one in scanned.examples if one.image not in material.unreadable],
        ),
    )
    if wanted.training.gradient_checkpointing:
        prepared.recompute_activations()
    if wanted.optimizer.name == "schedule_free":
        prepared.optimizer.train()
    return prepared


def go_on_from(prepared: Prepared, saved: Checkpoint) -> int:
    """Puts a checkpoint in place; returns the number of steps done.

    Raises:
        BaseModelError: if the base is not the one that the run began with.
    """
    if saved.extra.get("base", prepared.model.fingerprint) != prepared.model.fingerprint:
        raise BaseModelError(
            f"The base {prepared.model.reference} is not the one that this run began with: its "
            "files have changed.",
            "Put the former base back; or begin a new run, with --from_adapter if it shall go on "
            "from what this one has learned.",
        )
    factors.put(prepared.factors, saved.factors)
    peaks = [group["peak"] for group in prepared.optimizer.param_groups]
    prepared.optimizer.load_state_dict(dict(saved.optimizer))
    for group, peak in zip(prepared.optimizer.param_groups, peaks, strict=True):
        group["peak"] = peak  # a resumed run may have been given another rate
    if prepared.average is not None and saved.average:
        prepared.average.tensors.update(
            {name: value.to(prepared.model.device) for name, value in saved.average.items()}
        )
    if prepared.accelerator.scaler is not None and saved.extra["scaler"]:
        prepared.accelerator.scaler.load_state_dict(saved.extra["scaler"])
    vars(prepared.pace).update(saved.extra["pace"])
    if prepared.pace.recompute:
        prepared.recompute_activations()
    return saved.step


def extra_of(prepared: Prepared) -> dict[str, Any]:
    """What a checkpoint must hold besides factors and moments, as JSON."""
    scaler = prepared.accelerator.scaler
    held_out = prepared.held_out.images if prepared.held_out else ()
    return {
        "pace": vars(prepared.pace),
        "base": prepared.model.fingerprint,
        "scaler": scaler.state_dict() if scaler else None,
        "contents": dict(prepared.contents),
        "held_out": [name_of(prepared.folder, image.file) for image in held_out],
    }


def _attach(parts: Parts, wanted: Settings, model: BaseModel, fresh: bool) -> Attachment:
    """A new adapter, or the one to start from."""
    draws = generator(wanted.training.seed, "factors")
    attachment = attach_new(parts, wanted.adapter, draws)
    start_from = wanted.adapter.start_from
    if start_from is not None and fresh:
        try:
            start(attachment, wanted.adapter.kind, model, start_from)
        except AdapterError:
            attachment.detach()
            raise
    return attachment


def split(
    encoded: Sequence[Encoded], wanted: Settings, held_out: Sequence[Path] | None = None
) -> tuple[list[Encoded], list[Encoded]]:
    """The images to train on and those set aside, drawn from the seed; at least one is kept.

    If images were `held_out` before, those of them that are still there are, and no others: what
    has been trained on is no measure any more.
    """
    if held_out is not None:
        kept = [image for image in encoded if image.file.absolute() not in held_out]
        if kept:
            return kept, [image for image in encoded if image.file.absolute() in held_out]
    count = wanted.validation.held_out
    if count is None:
        count = len(encoded) // _SHARE_HELD_OUT if len(encoded) >= _FEWEST_TO_SPLIT else 0
    count = min(count, len(encoded) - 1)
    order = torch.randperm(
        len(encoded), generator=generator(wanted.training.seed, "split")
    ).tolist()
    aside = set(order[:count])
    kept = [image for index, image in enumerate(encoded) if index not in aside]
    return kept, [encoded[index] for index in sorted(aside)]


def _accelerator(model: BaseModel) -> Accelerator:
    # Only fp16 needs help from accelerate, to scale the loss so that small gradients survive; the
    # base is in its precision already, and the adapter's weights stay fp32 without autocast.
    return Accelerator(
        cpu=model.device.type == "cpu",
        mixed_precision="fp16" if model.dtype == torch.float16 else "no",
    )
