"""What a run leaves behind while it goes on: measurements, checkpoints, samples, the adapter."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from PIL import Image

from trainer import events, states
from trainer.adapter.adapter import save as save_adapter
from trainer.adapter.attach import read_back
from trainer.adapter.blocks import block_of
from trainer.adapter.header import Header
from trainer.data.wording import is_fixed
from trainer.errors import means_no_memory
from trainer.files import write_atomically
from trainer.precision import DTYPES
from trainer.preview.grid import save_png
from trainer.preview.recipe import parameters
from trainer.preview.render import Cancelled, PartStrength, Picture, render
from trainer.preview.request import Drawing
from trainer.run import Run
from trainer.settings import Settings
from trainer.training import checkpoint, factors, validation, verdict
from trainer.training.checkpoint import Checkpoint
from trainer.training.prepare import Prepared, extra_of
from trainer.training.report import build_report
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
    measured: dict[int, events.Validated] = field(default_factory=dict)
    gradients: dict[str, float] = field(default_factory=dict)

    def remember(self, earlier: Sequence[events.AnyEvent], start: int) -> None:
        """Takes in what earlier attempts measured up to step `start`, and how long work took."""
        for event in earlier:
            self.reporter.forecaster.heard(event)
            if isinstance(event, events.Validated) and event.step <= start:
                self.measured[event.step] = event

    def forget(self) -> None:
        """Drops what was measured: on other images, it is nothing to compare with."""
        self.measured.clear()

    @property
    def history(self) -> list[events.Validated]:
        """All validations, in the order of their steps."""
        return [self.measured[step] for step in sorted(self.measured)]

    def validate_base(self) -> None:
        """Measures a new adapter as it was before the first step, which is the base: its up
        matrices were zero. So this can wait until after that step."""
        began = time.monotonic()
        training, held_out = self._base
        layers = self.prepared.attachment.layers
        self._measured(
            events.Validated(
                step=0,
                training=training,
                base_training=training,
                held_out=held_out,
                base_held_out=held_out,
                change={block_of(path): 0.0 for path in layers},
                seconds=time.monotonic() - began,
            )
        )

    def validate(self, step: int) -> None:
        """Measures the adapter, and, the first time, the base without it; says what it means."""
        began = time.monotonic()
        model, held_out = self.prepared.model, self.prepared.held_out
        base_training, base_held_out = self._base
        layers = self.prepared.attachment.layers
        self._measured(
            events.Validated(
                step=step,
                training=validation.measure(model, self.prepared.training),
                base_training=base_training,
                held_out=validation.measure(model, held_out) if held_out else None,
                base_held_out=base_held_out,
                change=factors.change_by_block(layers),
                gradients=self.gradients,
                seconds=time.monotonic() - began,
            )
        )
        if said := verdict.newest(self.history):
            log.info("%s", said.message)
            self.reporter.say(said)

    def _measured(self, event: events.Validated) -> None:
        self.measured[event.step] = event
        self.reporter.say(event)
        log.info("validation at step %d: %s", event.step, event.words)

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
        """Saves a state to go on from, and the adapter as it would be used."""
        began, prepared = time.monotonic(), self.prepared

        def save_adapter(path: Path) -> None:
            with prepared.as_used():
                self.save_adapter(path, step)

        new = Checkpoint(
            step=step,
            factors=prepared.factors,
            optimizer=prepared.optimizer.state_dict(),
            average=prepared.average.tensors if prepared.average else {},
            extra={**extra_of(prepared), "skipped": self.reporter.skipped},
            settings=self.wanted.model_dump(mode="json"),
            environment=checkpoint.environment(self.wanted, prepared.model.device),
        )
        folder = self.run.checkpoints
        file = self.reporter.when_there_is_room(lambda: checkpoint.save(folder, new, save_adapter))
        checkpoint.rotate(folder, self.wanted.training.keep_checkpoints, self._best_saved())
        self.reporter.say(
            events.CheckpointSaved(
                step=step, file=self._relative(file), seconds=time.monotonic() - began
            )
        )

    def _best_saved(self) -> int | None:
        """The step with the lowest loss among those that were measured and saved."""
        saved = set(map(states.step_of, states.newest_first(self.run.checkpoints)))
        candidates = [event for event in self.history if event.step in saved]
        return verdict.best(candidates).step if candidates else None

    def is_lowest(self, step: int) -> bool:
        """Whether the loss measured at a step is the lowest so far, and so worth keeping."""
        return step in self.measured and verdict.best(self.history).step == step > 0

    def sample(self, step: int, strength: float | None = None) -> None:
        """Draws the prompts with the adapter as it is, or at another strength; given up if the run
        is asked to stop."""
        began, wanted = time.monotonic(), self.wanted.samples
        strength = wanted.strength if strength is None else strength
        images = self._draw(PartStrength(strength, strength))
        files = []
        for index, image in enumerate(images):
            path = self.run.samples / f"step-{step:06d}" / f"{index:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            texts = self._texts(index, *image.size)
            self.reporter.when_there_is_room(partial(save_png, image, path, texts))
            files.append(self._relative(path))
        if files:
            self.reporter.say(
                events.Sampled(
                    step=step,
                    files=tuple(files),
                    prompts=wanted.prompts,
                    seconds=time.monotonic() - began,
                )
            )

    def _texts(self, index: int, width: int, height: int) -> dict[str, str]:
        """What a sample was drawn from, as A1111 reads it; its adapter is in no file yet."""
        if self.wanted.output.private:
            return {}
        wanted = self.wanted.samples
        drawing = Drawing.model_construct(  # settings have been checked, in bounds of their own
            base=self.prepared.model.reference,
            prompt=wanted.prompts[index],
            negative_prompt=wanted.negative_prompt,
            seed=wanted.seed + index,
            steps=wanted.steps,
            guidance=wanted.guidance,
        )
        return {"parameters": parameters(drawing, 1.0, width, height, {})}

    def _draw(self, strength: PartStrength) -> list[Image.Image]:
        """An image for each prompt; none if the run is asked to stop before all are drawn, or if
        there is no memory for them: that is no reason to lose a run."""
        wanted, side = self.wanted.samples, self.wanted.dataset.resolution
        images = []
        try:
            for index, prompt in enumerate(wanted.prompts):
                picture = Picture(
                    prompt=prompt,
                    negative_prompt=wanted.negative_prompt,
                    seed=wanted.seed + index,
                    steps=wanted.steps,
                    guidance=wanted.guidance,
                    width=side,
                    height=side,
                )
                images += render(
                    self.prepared.model,
                    picture,
                    self.prepared.attachment,
                    {"new": strength},
                    cancelled=lambda: "stop" in self.run.requested(),
                )
        except Cancelled:
            return []
        except (RuntimeError, MemoryError) as error:
            if not means_no_memory(error):
                raise
            self.reporter.notice("There was not enough memory to draw samples; training goes on.")
            return []
        finally:
            self.prepared.attachment.set({"new": 1.0})
            self.prepared.model.release_vae()
            if self.prepared.conditions.store is not None and is_fixed(self.wanted.dataset):
                self.prepared.model.release_text_encoders()  # captions are remembered
        return images

    def finish(self, step: int) -> None:
        """Writes the adapter and the report, and says that the run is finished.

        Raises:
            RunFailed: if the file, read back, does not do what the model in memory does.
        """
        with self.prepared.as_used():
            self.reporter.when_there_is_room(lambda: self.save_adapter(self.run.adapter_file, step))
            self_test(self.prepared, self.run.adapter_file)
        self.report(step)
        self.reporter.say(events.Finished(step=step, adapter=self._relative(self.run.adapter_file)))

    def report(self, step: int) -> None:
        """Writes what the run amounts to after `step` steps, and says which checkpoint to use."""
        advice = self._recommended()
        content = build_report(self.run, self.prepared, self.reporter, self.history, advice)
        self.reporter.when_there_is_room(
            lambda: write_atomically(
                self.run.report_file, (json.dumps(content, indent=2) + "\n").encode()
            )
        )
        if advice is not None:
            log.info("%s", advice.why)
            self.reporter.say(advice)

    def _recommended(self) -> events.Recommended | None:
        """The checkpoint to use; None if none was measured."""
        files = {states.step_of(file): file for file in self._checkpoint_files()}
        chosen = verdict.recommendation(self.history, list(files))
        if chosen is None:
            return None
        step, why = chosen
        return events.Recommended(step=step, file=self._relative(files[step]), why=why)

    def save_adapter(self, path: Path, step: int) -> None:
        """Writes the adapter as it is, in the form that every tool reads."""
        wanted, header = self.wanted, self._header(step)
        save_adapter(
            read_back(self.prepared.attachment),
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

    def _checkpoint_files(self) -> list[Path]:
        return sorted(self.run.checkpoints.glob("step-*.safetensors"))

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.run.path).as_posix()
