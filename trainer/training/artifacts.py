"""What a run leaves behind while it goes on: measurements, checkpoints, samples, the adapter."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from trainer import events
from trainer.adapter.adapter import save as save_adapter
from trainer.adapter.attach import read_back
from trainer.adapter.header import Header
from trainer.files import write_atomically
from trainer.preview.grid import save_png
from trainer.preview.render import PartStrength, Picture, render
from trainer.run import Run
from trainer.settings import Settings
from trainer.training import checkpoint, validation
from trainer.training.prepare import Prepared
from trainer.training.reporter import Reporter

log = logging.getLogger("atelier")

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Artifacts:
    """Writes a run's artifacts and says so."""

    run: Run
    wanted: Settings
    prepared: Prepared
    reporter: Reporter
    measured: dict[int, events.Validated]  # by step; those of earlier attempts are there already
    _began: float = field(default_factory=time.monotonic)

    def validate(self, step: int) -> None:
        """Measures the adapter, and, the first time, the base without it."""
        model, held_out = self.prepared.model, self.prepared.held_out
        base_training, base_held_out = self._base
        event = events.Validated(
            step=step,
            training=validation.measure(model, self.prepared.training),
            base_training=base_training,
            held_out=validation.measure(model, held_out) if held_out else None,
            base_held_out=base_held_out,
        )
        self.measured[step] = event
        self.reporter.say(event)
        log.info("validation at step %d: %s", step, event.words)

    @property
    def _base(self) -> tuple[float, float | None]:
        """Losses without the adapter, on the training and the held-out images."""
        for known in self.measured.values():
            return known.base_training, known.base_held_out
        attachment, held_out = self.prepared.attachment, self.prepared.held_out
        attachment.set({})
        try:
            return (
                validation.measure(self.prepared.model, self.prepared.training),
                validation.measure(self.prepared.model, held_out) if held_out else None,
            )
        finally:
            attachment.set({"new": 1.0})

    def checkpoint(self, step: int) -> None:
        """Saves a state to go on from, and the adapter as it is."""
        layers = self.prepared.attachment.layers
        factors = {f"{path}/down": layer.down for path, layer in layers.items()}
        factors |= {f"{path}/up": layer.up for path, layer in layers.items()}
        file = checkpoint.save(
            self.run.checkpoints,
            step,
            factors,
            self.prepared.optimizer,
            lambda path: self.save_adapter(path, step),
        )
        checkpoint.rotate(self.run.checkpoints, self.wanted.training.keep_checkpoints)
        self.reporter.say(events.CheckpointSaved(step=step, file=self._relative(file)))

    def sample(self, step: int) -> None:
        """Draws the prompts with the adapter as it is."""
        wanted = self.wanted.samples
        files = []
        for index, prompt in enumerate(wanted.prompts):
            picture = Picture(
                prompt=prompt,
                negative_prompt=wanted.negative_prompt,
                seed=wanted.seed + index,
                steps=wanted.steps,
                guidance=wanted.guidance,
                width=self.wanted.dataset.resolution,
                height=self.wanted.dataset.resolution,
            )
            strength = {"new": PartStrength(wanted.strength, wanted.strength)}
            image = render(self.prepared.model, picture, self.prepared.attachment, strength)[0]
            path = self.run.samples / f"step-{step:06d}" / f"{index:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_png(image, path)
            files.append(self._relative(path))
        self.prepared.attachment.set({"new": 1.0})
        if files:
            event = events.Sampled(step=step, files=tuple(files), prompts=wanted.prompts)
            self.reporter.say(event)

    def finish(self, step: int) -> None:
        """Writes the adapter and the report, and says that the run is finished."""
        self.save_adapter(self.run.adapter_file, step)
        report = json.dumps(self._report(step), indent=2) + "\n"
        write_atomically(self.run.report_file, report.encode())
        self.reporter.say(events.Finished(step=step, adapter=self._relative(self.run.adapter_file)))

    def save_adapter(self, path: Path, step: int) -> None:
        """Writes the adapter as it is, in the form that every tool reads."""
        wanted, header = self.wanted, self._header(step)
        save_adapter(
            read_back(self.prepared.attachment, wanted.adapter.alpha),
            path,
            header.without_private_parts() if wanted.output.private else header,
            precision=_DTYPES[wanted.output.precision],
        )

    def _header(self, step: int) -> Header:
        wanted, model = self.wanted, self.prepared.model
        return Header(
            name=wanted.output.name,
            family=model.family,
            rank=wanted.adapter.rank,
            alpha=wanted.adapter.alpha,
            prediction_type=model.prediction_type,
            trigger_words=(wanted.dataset.trigger,) if wanted.dataset.trigger else (),
            base=wanted.base.model,
            base_hash=model.fingerprint,
            resolution=wanted.dataset.resolution,
            images=self.prepared.images,
            steps=step,
            seed=wanted.training.seed,
            settings=wanted.to_json(),
            created=datetime.now(UTC),
        )

    def _report(self, step: int) -> dict[str, Any]:
        history = [self.measured[key] for key in sorted(self.measured)]
        best, last = min(history, key=_judged), history[-1]
        return {
            "steps": step,
            "seconds": round(time.monotonic() - self._began, 1),
            "device": str(self.prepared.model.device),
            "trained_parameters": self.prepared.trained_parameters,
            "base_parameters": self.prepared.base_parameters,
            "adapter": self._relative(self.run.adapter_file),
            "validations": [event.model_dump(exclude={"time", "type"}) for event in history],
            "final": last.words,
            "held_out_improvement": last.improvement,
            "lowest_at_step": best.step,
        }

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.run.path).as_posix()


def _judged(event: events.Validated) -> float:
    return event.training if event.held_out is None else event.held_out
