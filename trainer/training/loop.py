"""The training loop: batch, loss, step; then whatever is due or has been asked for.

Step k draws all its randomness from (seed, k), so a run that was stopped or killed goes on from its
newest checkpoint as if nothing had happened.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.errors import NonFinite, OutOfMemory
from trainer.run import Run
from trainer.settings import Settings
from trainer.training import checkpoint, factors, memory, optimizers, verdict
from trainer.training.artifacts import Artifacts
from trainer.training.objective import Objective
from trainer.training.prepare import Prepared, go_on_from
from trainer.training.reporter import Reporter

# So many bad steps in a row are no bad luck.
_MOST_SKIPPED_IN_A_ROW = 5


@dataclass
class Loop:
    """One attempt at a run, from the step at which it starts to its end or a stop."""

    run: Run
    wanted: Settings
    prepared: Prepared
    objective: Objective
    reporter: Reporter
    artifacts: Artifacts
    _skipped_in_a_row: int = 0

    def train(self, step: int) -> bool:
        """Does the steps from `step` on; True when all are done, False when asked to stop."""
        if step == 0:
            self.artifacts.validate(0)
        self.reporter.begin(step)
        while step < self.steps:
            loss = self.step(step)
            step += 1
            if self._skipped_in_a_row == _MOST_SKIPPED_IN_A_ROW:
                step = self._go_back()
                continue
            rate = self.prepared.optimizer.param_groups[0]["lr"]
            self.reporter.step(step, loss, rate, self.prepared.model.device)
            stop = step < self.steps and self.run.take("stop")
            if stop:
                self.reporter.stopping(step)
            if loss is None and step < self.steps and not stop:
                continue  # nothing new to measure, and no state worth going back to
            out_of_patience = self._do_what_is_due(step, stop)
            if stop:
                return False
            if out_of_patience:
                return True
        return True

    def step(self, step: int) -> Tensor | None:
        """One optimizer step. Returns the mean loss of its images, still on the device; None if
        the step was skipped because the loss or a gradient was not finite."""
        prepared, wanted = self.prepared, self.wanted
        factor = optimizers.rate_factor(wanted.optimizer, step, self.steps)
        optimizers.set_rates(prepared.optimizer, factor * prepared.pace.rate)
        loss = self._gradients(step)
        # Looked at before the gradients are: what is skipped must not touch fp16's loss scale.
        if not torch.isfinite(loss):
            self._skip(step)
            return None
        norm = prepared.accelerator.clip_grad_norm_(
            list(prepared.factors.values()), wanted.optimizer.max_gradient_norm or float("inf")
        )
        # In fp16 gradients may overflow now and then: the scaler drops the step, and lowers itself.
        if prepared.accelerator.scaler is None and not torch.isfinite(norm):
            self._skip(step)
            return None
        self._skipped_in_a_row = 0
        if (step + 1) % wanted.validation.every_steps == 0:
            self.artifacts.gradients = factors.gradients_by_block(prepared.attachment.layers)
        prepared.optimizer.step()
        prepared.optimizer.zero_grad()
        if wanted.adapter.max_norm is not None:
            factors.limit_norms(prepared.attachment.layers, prepared.scale, wanted.adapter.max_norm)
        if prepared.average is not None:
            prepared.average.update(prepared.factors, step)
        return loss

    @property
    def steps(self) -> int:
        return self.wanted.training.steps

    def _gradients(self, step: int) -> Tensor:
        """Adds up the gradients of a step, in smaller pieces if memory runs out; returns the mean
        loss. Smaller pieces change how the sum is formed, not what it is."""
        while True:
            try:
                return self._accumulate(step)
            except (RuntimeError, MemoryError) as error:
                if not memory.ran_out(error):
                    raise
            # Outside the handler, so that what the failed pass held can be let go.
            self.prepared.optimizer.zero_grad()
            memory.release()
            self._use_less_memory()

    def _accumulate(self, step: int) -> Tensor:
        prepared = self.prepared
        passes = self.wanted.training.gradient_accumulation
        total = torch.zeros((), device=prepared.model.device)
        for micro in range(passes):
            batch = prepared.batches.batch(step, micro)
            question = self.objective.ask(batch, step, micro)
            count = len(batch.captions)
            size = -(-count // prepared.pace.pieces)
            for first in range(0, count, size):
                losses = self.objective.losses(question, slice(first, first + size))
                loss = losses.sum() / (count * passes)
                prepared.accelerator.backward(loss)
                total += loss.detach()
        return total

    def _use_less_memory(self) -> None:
        """The next way to do the same step in less memory.

        Raises:
            OutOfMemory: when there is none left.
        """
        pace, batch_size = self.prepared.pace, self.wanted.training.batch_size
        if pace.pieces < batch_size:
            pace.pieces = min(batch_size, pace.pieces * 2)
            self.reporter.notice(
                f"Memory ran out, so each batch is now done in {pace.pieces} parts; the result is "
                "the same."
            )
        elif not pace.recompute:
            pace.recompute = True
            self.prepared.recompute_activations()
            self.reporter.notice(
                "Memory ran out, so activations are now recomputed (gradient checkpointing), about "
                "a quarter slower; the result is the same."
            )
        else:
            raise OutOfMemory(
                "There is not enough memory for a single image of this run.",
                "Lower dataset.resolution, set base.precision to bf16 or fp16, or close other "
                "programs; then resume.",
            )

    def _skip(self, step: int) -> None:
        """Drops the gradients of a step that is not finite, naming its images."""
        self.prepared.optimizer.zero_grad()
        self._skipped_in_a_row += 1
        passes = range(self.wanted.training.gradient_accumulation)
        files = [
            file for micro in passes for file in self.prepared.batches.batch(step, micro).files
        ]
        names = ", ".join(sorted({file.name for file in files}))
        self.reporter.skipped += 1
        self.reporter.notice(f"Step {step + 1} was skipped: its loss was not finite ({names}).")

    def _go_back(self) -> int:
        """Returns to the newest checkpoint with half the rate; the step to go on with.

        Raises:
            NonFinite: if that was done before, or there is no checkpoint.
        """
        saved = checkpoint.newest(self.run.checkpoints)
        if saved is None or self.prepared.pace.rate < 1:
            raise NonFinite(
                f"{_MOST_SKIPPED_IN_A_ROW} steps in a row had a loss that is not finite.",
                "Lower optimizer.learning_rate, set base.precision to bf16 or fp32, or look at the "
                "images named in the notices.",
            )
        self._skipped_in_a_row = 0
        step = go_on_from(self.prepared, saved)
        self.prepared.pace.rate = 0.5
        self.reporter.notice(
            f"{_MOST_SKIPPED_IN_A_ROW} steps in a row were not finite: back to step {step}, with "
            "half the learning rate."
        )
        self.reporter.begin(step)
        return step

    def _do_what_is_due(self, done: int, stop: bool) -> bool:
        """Measures, saves and draws; True if the run has run out of patience."""
        wanted, artifacts, last = self.wanted, self.artifacts, done == self.steps
        with self.prepared.as_used():
            if done % wanted.validation.every_steps == 0 or last:
                artifacts.validate(done)
            early = wanted.validation.patience is not None and verdict.out_of_patience(
                artifacts.history, wanted.validation.patience
            )
            last = last or early
            save_due = done % wanted.training.checkpoint_every_steps == 0 or last or stop
        if self.run.take("save") or save_due:
            artifacts.checkpoint(done)
        with self.prepared.as_used():
            samples_due = done % wanted.samples.every_steps == 0 or last
            if self.run.take("sample") or (samples_due and not stop):
                artifacts.sample(done)
        if early:
            self.reporter.notice("Stopping early: the loss has not fallen for a while.")
        return early
