"""Everything that is made once before the first step: data, base, adapter, optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from trainer import events
from trainer.adapter.attach import Attachment, Parts, attach_new
from trainer.adapter.fit import fitted
from trainer.data.batches import Batches, sizes_of
from trainer.data.dataset import Example, Scan
from trainer.data.latents import Encoded, encode
from trainer.errors import AdapterError
from trainer.model.load import load
from trainer.model.stable_diffusion import BaseModel
from trainer.preview.session import load_for
from trainer.randomness import generator
from trainer.settings import Settings
from trainer.training import factors, optimizers
from trainer.training.checkpoint import Checkpoint
from trainer.training.factors import Average
from trainer.training.validation import Probe

Progress = Callable[[str, int, int], None]  # stage in words, parts done, parts in all

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
    """What the loop works with. `held_out` is None if no image was set aside."""

    model: BaseModel
    attachment: Attachment
    batches: Batches
    training: Probe
    held_out: Probe | None
    optimizer: AcceleratedOptimizer
    accelerator: Accelerator
    average: Average | None
    scale: float
    pace: Pace

    @cached_property
    def factors(self) -> dict[str, nn.Parameter]:
        return factors.named(self.attachment.layers)

    def as_used(self) -> AbstractContextManager[None]:
        """Within the block the adapter is as it would be saved; see `factors.as_used`."""
        return factors.as_used(self.factors, self.optimizer, self.average)

    def recompute_activations(self) -> None:
        """Turns on gradient checkpointing (Chen et al., 2016, arXiv:1604.06174)."""
        self.model.unet.enable_gradient_checkpointing()
        self.model.unet.train()  # its blocks recompute in training mode only; it has no dropout

    @property
    def images(self) -> int:
        return len(self.training.images)

    @property
    def trained_parameters(self) -> int:
        return sum(
            layer.down.numel() + layer.up.numel() for layer in self.attachment.layers.values()
        )

    @property
    def base_parameters(self) -> int:
        whole = sum(p.numel() for part in self.model.parts.values() for p in part.parameters())
        return whole - self.trained_parameters

    def summary(self, wanted: Settings) -> events.Ready:
        """What is about to be trained, for people to see before it begins."""
        bytes_each = 4 if wanted.output.precision == "fp32" else 2
        return events.Ready(
            device=str(self.model.device),
            precision=str(self.model.dtype).removeprefix("torch."),
            steps=wanted.training.steps,
            images=self.images,
            held_out=len(self.held_out.images) if self.held_out else 0,
            trained_parameters=self.trained_parameters,
            base_parameters=self.base_parameters,
            file_bytes=self.trained_parameters * bytes_each,
        )


def prepare(wanted: Settings, scanned: Scan, progress: Progress, fresh: bool) -> Prepared:
    """Loads the base, encodes the images, attaches an adapter and builds its optimizer.

    A run that is not `fresh` has a checkpoint, so it needs no adapter to start from.

    Raises:
        BaseModelError, UserError, OutOfMemory: see `model.load` and `adapter.attach`.
    """
    progress(f"Loading the base {wanted.base.model}", 0, 1)
    model = load(wanted.base)
    accelerator = _accelerator(model)
    encoded = _encode(model, wanted, scanned, progress)
    kept, held_out = split(encoded, wanted)
    parts = {"unet": model.unet}
    if wanted.adapter.text_encoder:
        parts |= model.text_encoders
    attachment = _attach(parts, wanted, model, fresh)
    named, decay = factors.named(attachment.layers), wanted.adapter.ema_decay
    seed, timesteps = wanted.training.seed, wanted.validation.timesteps
    at_once = wanted.training.batch_size
    prepared = Prepared(
        model=model,
        attachment=attachment,
        batches=Batches(kept, wanted),
        training=Probe("training", kept, timesteps, seed, at_once),
        held_out=Probe("held-out", held_out, timesteps, seed, at_once) if held_out else None,
        optimizer=accelerator.prepare(optimizers.build(wanted.optimizer, attachment)),
        accelerator=accelerator,
        average=factors.Average(named, decay) if decay is not None else None,
        scale=wanted.adapter.alpha / wanted.adapter.rank,
        pace=Pace(),
    )
    if wanted.training.gradient_checkpointing:
        prepared.recompute_activations()
    if wanted.optimizer.name == "schedule_free":
        prepared.optimizer.train()
    return prepared


def go_on_from(prepared: Prepared, saved: Checkpoint) -> int:
    """Puts a checkpoint in place; returns the number of steps done."""
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
    return {"pace": vars(prepared.pace), "scaler": scaler.state_dict() if scaler else None}


def _attach(parts: Parts, wanted: Settings, model: BaseModel, fresh: bool) -> Attachment:
    """A new adapter, or the one to start from."""
    adapter = wanted.adapter
    draws = generator(wanted.training.seed, "factors")
    attachment = attach_new(parts, adapter.targets, adapter.rank, adapter.alpha, draws)
    if adapter.start_from is None or not fresh:
        return attachment
    given = fitted(
        load_for(model.family, model.folder, adapter.start_from),
        {path: tuple(layer.weight.shape) for path, layer in attachment.layers.items()},
    )
    wrong = [p for p, f in given.items() if p not in attachment.layers or f.rank != adapter.rank]
    if wrong or given.keys() != attachment.layers.keys():
        where = wrong[0] if wrong else next(iter(attachment.layers.keys() - given.keys()))
        attachment.detach()
        raise AdapterError(
            f"{adapter.start_from} is not an adapter of rank {adapter.rank} on the layers that "
            f"adapter.targets {adapter.targets} means: it differs at {where}.",
            "Give its rank and targets, or resize it first by `atelier resize`.",
        )
    with torch.no_grad():
        for path, layer in attachment.layers.items():
            layer.down.copy_(given[path].down)
            layer.up.copy_(given[path].up * given[path].alpha / adapter.alpha)
    return attachment


def split(encoded: Sequence[Encoded], wanted: Settings) -> tuple[list[Encoded], list[Encoded]]:
    """The images to train on and those set aside, drawn from the seed; at least one is kept."""
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


def with_trigger(caption: str, trigger: str | None) -> str:
    """The caption with the trigger word in front, unless it has it."""
    if trigger is None or trigger.lower() in caption.lower():
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def _encode(model: BaseModel, wanted: Settings, scanned: Scan, progress: Progress) -> list[Encoded]:
    examples: tuple[Example, ...] = scanned.examples
    captions = [with_trigger(example.caption, wanted.dataset.trigger) for example in examples]
    sizes = sizes_of(examples, wanted.dataset.resolution)
    return encode(
        model,
        examples,
        sizes,
        captions,
        wanted.dataset.flip,
        lambda done: progress("Encoding images", done, len(examples)),
    )


def _accelerator(model: BaseModel) -> Accelerator:
    # Only fp16 needs help from accelerate, to scale the loss so that small gradients survive; the
    # base is in its precision already, and the adapter's weights stay fp32 without autocast.
    return Accelerator(
        cpu=model.device.type == "cpu",
        mixed_precision="fp16" if model.dtype == torch.float16 else "no",
    )
