"""Everything that is made once before the first step: data, base, adapter, optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from trainer import events
from trainer.adapter.attach import Attachment, attach_new
from trainer.data.batches import Batches, sizes_of
from trainer.data.dataset import Example, Scan
from trainer.data.latents import Encoded, encode
from trainer.model.load import load
from trainer.model.stable_diffusion import BaseModel
from trainer.randomness import generator
from trainer.settings import Settings
from trainer.training import optimizers
from trainer.training.checkpoint import Checkpoint
from trainer.training.validation import Probe

Progress = Callable[[str, int, int], None]  # stage in words, parts done, parts in all

_FEWEST_TO_SPLIT = 6
_SHARE_HELD_OUT = 6  # one in so many


@dataclass(frozen=True)
class Prepared:
    """What the loop works with. `held_out` is None if no image was set aside."""

    model: BaseModel
    attachment: Attachment
    batches: Batches
    training: Probe
    held_out: Probe | None
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator

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


def prepare(wanted: Settings, scanned: Scan, progress: Progress) -> Prepared:
    """Loads the base, caches latents, attaches a new adapter and builds its optimizer.

    Raises:
        BaseModelError, UserError, OutOfMemory: see `model.load` and `adapter.attach`.
    """
    progress(f"Loading the base {wanted.base.model}", 0, 1)
    model = load(wanted.base)
    if wanted.training.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
        model.unet.train()  # its blocks recompute in training mode only; it has no dropout
    accelerator = _accelerator(model)
    encoded = _encode(model, wanted, scanned, progress)
    kept, held_out = split(encoded, wanted)
    parts = {"unet": model.unet}
    if wanted.adapter.text_encoder:
        parts |= model.text_encoders
    attachment = attach_new(
        parts,
        wanted.adapter.targets,
        wanted.adapter.rank,
        wanted.adapter.alpha,
        generator(wanted.training.seed, "factors"),
    )
    optimizer = optimizers.build(
        wanted.optimizer,
        attachment.parameters("unet"),
        [p for part in model.text_encoders for p in attachment.parameters(part)],
    )
    seed, timesteps = wanted.training.seed, wanted.validation.timesteps
    return Prepared(
        model=model,
        attachment=attachment,
        batches=Batches(kept, wanted),
        training=Probe("training", kept, timesteps, seed),
        held_out=Probe("held-out", held_out, timesteps, seed) if held_out else None,
        optimizer=accelerator.prepare(optimizer),
        accelerator=accelerator,
    )


@torch.no_grad()
def go_on_from(prepared: Prepared, saved: Checkpoint) -> int:
    """Puts a checkpoint's factors and moments in place; returns the number of steps done."""
    for path, layer in prepared.attachment.layers.items():
        layer.down.copy_(saved.factors[f"{path}/down"])
        layer.up.copy_(saved.factors[f"{path}/up"])
    prepared.optimizer.load_state_dict(dict(saved.optimizer))
    return saved.step


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
