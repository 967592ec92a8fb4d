"""What a run leaves behind while it goes on: measurements, checkpoints, samples, the adapter."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from trainer import events
from trainer.adapter.adapter import save as save_adapter
from trainer.adapter.attach import read_back
from trainer.adapter.header import Header
from trainer.files import write_atomically
from trainer.precision import DTYPES
from trainer.preview.grid import save_png
from trainer.preview.render import PartStrength, Picture, render
from trainer.run import Run
from trainer.settings import Settings
from trainer.training import checkpoint, factors, validation, verdict
from trainer.training.prepare import Prepared, extra_of
from trainer.training.reporter import Reporter
from trainer.training.self_test import self_test

log = logging.getLogger("atelier")


@dataclass
class Artifacts:
    """Writes a run's artifacts and says so. `measured` has all validations by step, those of
    earlier attempts too; `gradients` is for the next one to report."""

    run: Run
    wanted: Settings
    prepared: Prepared
    reporter: Reporter
    measured: dict[int, events.Validated]
    gradients: dict[str, float] = field(default_factory=dict)

    @property
    def history(self) -> list[events.Validated]:
        """All validations, in the order of their steps."""
        return [self.measured[step] for step in sorted(self.measured)]

    def validate(self, step: int) -> None:
        """Measures the adapter, and, the first time, the base without it; says what it means."""
        model, held_out = self.prepared.model, self.prepared.held_out
        base_training, base_held_out = self._base
        layers = self.prepared.attachment.layers
        event = events.Validated(
            step=step,
            training=validation.measure(model, self.prepared.training),
            base_training=base_training,
            held_out=validation.measure(model, held_out) if held_out else None,
            base_held_out=base_held_out,
            change=factors.change_by_block(layers, self.prepared.scale),
            gradients=self.gradients,
        )
        self.measured[step] = event
        self.reporter.say(event)
        log.info("validation at step %d: %s", step, event.words)
        first = next((event for event in self.history if event.step > 0), None)
        if event is first:
            self._say_verdict(verdict.early(event))
        elif warning := verdict.overfitting(self.history):
            self._say_verdict(warning)

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

    def _say_verdict(self, said: events.Verdict) -> None:
        log.info("%s", said.message)
        self.reporter.say(said)

    def checkpoint(self, step: int) -> None:
        """Saves a state to go on from, and the adapter as it would be used."""
        prepared = self.prepared

        def save_adapter(path: Path) -> None:
            with prepared.as_used():
                self.save_adapter(path, step)

        file = self.reporter.when_there_is_room(
            lambda: checkpoint.save(
                self.run.checkpoints,
                step,
                prepared.factors,
                prepared.optimizer,
                prepared.average.tensors if prepared.average else {},
                extra_of(prepared),
                save_adapter,
            )
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
            self.reporter.when_there_is_room(partial(save_png, image, path))
            files.append(self._relative(path))
        self.prepared.attachment.set({"new": 1.0})
        self.prepared.model.release_vae()
        if files:
            event = events.Sampled(step=step, files=tuple(files), prompts=wanted.prompts)
            self.reporter.say(event)

    def finish(self, step: int) -> None:
        """Writes the adapter and the report, and says that the run is finished.

        Raises:
            RunFailed: if the file, read back, does not do what the model in memory does.
        """
        with self.prepared.as_used():
            self.reporter.when_there_is_room(lambda: self.save_adapter(self.run.adapter_file, step))
            self_test(self.prepared, self.run.adapter_file)
        report = self._report(step)
        content = json.dumps(report, indent=2) + "\n"
        self.reporter.when_there_is_room(
            lambda: write_atomically(self.run.report_file, content.encode())
        )
        if report["recommended"]["step"] != step:
            self.reporter.notice(f"{report['recommended']['why']} Try that checkpoint too.")
        self.reporter.say(events.Finished(step=step, adapter=self._relative(self.run.adapter_file)))

    def save_adapter(self, path: Path, step: int) -> None:
        """Writes the adapter as it is, in the form that every tool reads."""
        wanted, header = self.wanted, self._header(step)
        save_adapter(
            read_back(self.prepared.attachment, wanted.adapter.alpha),
            path,
            header.without_private_parts() if wanted.output.private else header,
            precision=DTYPES[wanted.output.precision],
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
        history, last = self.history, self.history[-1]
        saved = [int(file.stem.removeprefix("step-")) for file in self._checkpoint_files()]
        recommended, why = verdict.recommendation(history, saved)
        file = self.run.checkpoints / f"step-{recommended:06d}.safetensors"
        return {
            "steps": step,
            "seconds": round(self.reporter.seconds(), 1),
            "device": str(self.prepared.model.device),
            "trained_parameters": self.prepared.trained_parameters,
            "base_parameters": self.prepared.base_parameters,
            "share_of_base": self.prepared.trained_parameters / self.prepared.base_parameters,
            "adapter": self._relative(self.run.adapter_file),
            "file_bytes": self.run.adapter_file.stat().st_size,
            "skipped_steps": self.reporter.skipped,
            "recommended": {
                "step": recommended,
                "file": self._relative(file if file.exists() else self.run.adapter_file),
                "why": why,
            },
            "final": last.words,
            "held_out_improvement": last.improvement,
            "validations": [event.model_dump(exclude={"time", "type"}) for event in history],
        }

    def _checkpoint_files(self) -> list[Path]:
        return sorted(self.run.checkpoints.glob("step-*.safetensors"))

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.run.path).as_posix()
