"""The training loop: batch, loss, step; then whatever is due or has been asked for.

Step k draws all its randomness from (seed, k), so a run that was stopped or killed goes on from its
newest checkpoint as if nothing had happened.

Nothing in a step waits for the device: losses are read when they are to be said, and on an
accelerator the check that loss and gradients are finite stays there too (`optimizers.step_if`).
That is also what a step captured as a graph, to be replayed, would need.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from trainer.errors import NonFinite, OutOfMemory, means_no_memory
from trainer.randomness import number
from trainer.run import Request, Run
from trainer.settings import Settings
from trainer.training import checkpoint, factors, memory, optimizers, verdict
from trainer.training.artifacts import Artifacts
from trainer.training.objective import Objective
from trainer.training.prepare import Prepared, go_on_from
from trainer.training.ranks import Ranks
from trainer.training.reporter import Reporter

log = logging.getLogger("atelier")

# So many bad steps in a row are no bad luck.
_MOST_SKIPPED_IN_A_ROW = 5
# How many steps may wait to be looked at, where looking means waiting for the device.
_MOST_UNSEEN = 16


@dataclass
class Loop:
    """One attempt at a run, from the step at which it starts to its end or a stop.

    Of several processes (`ranks`), each does all of this for its part of the images, but only the
    first has anything to write; `requested` tells what a process has been asked for.
    """

    run: Run
    wanted: Settings
    prepared: Prepared
    objective: Objective
    reporter: Reporter
    artifacts: Artifacts
    ranks: Ranks
    requested: Callable[[], frozenset[Request]]
    _asked: frozenset[Request] = frozenset()
    _skipped_in_a_row: int = 0
    _unseen: list[tuple[int, Tensor]] = field(default_factory=list)

    def train(self, step: int) -> bool:
        """Does the steps from `step` on; True when all are done, False when asked to stop."""
        if step == 0 and self.wanted.adapter.start_from is not None and self.ranks.first:
            self.artifacts.validate(0)
            self.artifacts.sample(0, strength=0.0)
        self.reporter.begin(step)
        if step and self._out_of_patience():  # ended before it could say that it had finished
            return True
        while step < self.steps:
            loss = self.step(step)
            step += 1
            asked = self._asked
            if asked or self._anything_is_due(step) or len(self._unseen) == _MOST_UNSEEN:
                self._look()
            if self._skipped_in_a_row >= _MOST_SKIPPED_IN_A_ROW:
                step = self._go_back()
                continue
            rate = self.prepared.optimizer.param_groups[0]["lr"]
            self.reporter.step(step, loss, rate, self.prepared.model.device)
            if self._base_is_unknown and "stop" not in asked:
                self.artifacts.validate_base()  # not earlier: people wait for the first step
                self.artifacts.sample(0, strength=0.0)
                self.reporter.begin(step)
            stop = step < self.steps and "stop" in asked
            if stop:
                self._take("stop")
                self.reporter.stopping(step)
            if self._skipped_in_a_row and step < self.steps and not stop:
                continue  # nothing new to measure, and no state worth going back to
            if not (asked or self._anything_is_due(step)):
                continue
            out_of_patience = self._do_what_is_due(step, stop)
            if stop:
                return False
            if out_of_patience:
                return True
        return True

    def step(self, step: int) -> Tensor | None:
        """One optimizer step. Returns the mean loss of its images, still on the device; None if
        the step is known to be skipped because the loss or a gradient was not finite."""
        prepared, wanted = self.prepared, self.wanted
        text_steps = wanted.adapter.text_encoder_steps(self.steps)
        prepared.train_text_encoders(step < text_steps)
        factor = optimizers.rate_factor(wanted.optimizer, step, self.steps)
        optimizers.set_rates(prepared.optimizer, factor * prepared.pace.rate)
        loss = self._shared_gradients(step)
        if not self._move(step, loss):
            self._skip(step)
            return None
        if wanted.adapter.max_norm is not None:
            factors.limit_norms(prepared.attachment.layers, wanted.adapter.max_norm)
        if prepared.average is not None:
            prepared.average.update(prepared.factors, step)
        return loss

    @property
    def steps(self) -> int:
        return self.wanted.training.steps

    def _take(self, request: Request) -> bool:
        """Whether something was asked for; it is then done with."""
        if self.ranks.first:
            self.run.take(request)
        return request in self._asked

    @property
    def _base_is_unknown(self) -> bool:
        started_anew = self.wanted.adapter.start_from is None
        return self.ranks.first and started_anew and 0 not in self.artifacts.measured

    @cached_property
    def _may_stay_unseen(self) -> bool:
        """Whether the device itself can leave a step out, and looking would mean waiting for it.

        On a CPU looking is free. An average and a limit of norms would have to be left out too.
        """
        prepared = self.prepared
        return (
            prepared.model.device.type != "cpu"
            and prepared.accelerator.scaler is None
            and prepared.average is None
            and self.wanted.adapter.max_norm is None
            and optimizers.can_step_if(prepared.optimizer.optimizer)
        )

    def _look(self) -> None:
        """Waits for the steps that nobody has looked at, and names those that were skipped."""
        if not self._unseen:
            return
        steps, flags = zip(*self._unseen, strict=True)
        self._unseen.clear()
        for step, finite in zip(steps, torch.stack(flags).tolist(), strict=True):
            if not finite:
                self._skip(step)
            elif self._skipped_in_a_row < _MOST_SKIPPED_IN_A_ROW:
                self._skipped_in_a_row = 0

    def _is_due(self, done: int, every: int) -> bool:
        """Whether it is time, after `done` steps, for what is done every so many and at the end."""
        return done == self.steps or done % every == 0

    def _anything_is_due(self, done: int) -> bool:
        """Whether anything is to be measured, saved or drawn after `done` steps."""
        wanted = self.wanted
        every = (
            wanted.validation.every_steps,
            wanted.training.checkpoint_every_steps,
            wanted.samples.every_steps,
        )
        return any(self._is_due(done, steps) for steps in every)

    def _shared_gradients(self, step: int) -> Tensor:
        """The gradients of a step, added up over all processes, which agree meanwhile on what they
        have been asked for. Returns the mean loss."""
        try:
            loss = self._gradients(step)
        except Exception:
            self.ranks.fail()
            raise
        self._asked = self.ranks.agree(self.requested())
        return self.ranks.add_up(loss, self.prepared.factors.values())

    def _gradients(self, step: int) -> Tensor:
        """Adds up the gradients of a step, in smaller pieces if memory runs out; returns the mean
        loss. Smaller pieces change how the sum is formed, not what it is."""
        while True:
            try:
                return self._accumulate(step)
            except (RuntimeError, MemoryError) as error:
                if not means_no_memory(error):
                    raise
                log.warning("step %d: %s", step + 1, error)
            # Outside the handler, so that what the failed pass held can be let go.
            self.prepared.optimizer.zero_grad()
            memory.release()
            self._use_less_memory()

    def _accumulate(self, step: int) -> Tensor:
        prepared = self.prepared
        accumulation = self.wanted.training.gradient_accumulation
        total = torch.zeros((), device=prepared.model.device)
        for micro, part in self.ranks.part(prepared.batches.passes):
            batch = prepared.batches.batch(step, micro)
            self.reporter.left_out(batch.unreadable)
            question = self.objective.ask(batch, step, micro)
            count = len(batch.captions)
            mine = part(count)
            size = -(-len(mine) // prepared.pace.pieces)
            key = number(self.wanted.training.seed, "dropout", step, micro)
            for first in mine[:: max(size, 1)]:
                images = slice(first, min(first + size, mine.stop))
                with prepared.attachment.dropout.drawn(key, images, count):
                    losses = self.objective.losses(question, images)
                    loss = losses.sum() * batch.weight / (count * accumulation)
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
                "Close other programs and resume, with --base.precision bf16 if it is fp32; or "
                "begin a new run with a lower dataset.resolution.",
            )

    def _move(self, step: int, loss: Tensor) -> bool:
        """Moves the factors by their clipped gradients; False, and nothing moves, if the loss or a
        gradient is known not to be finite."""
        prepared, wanted = self.prepared, self.wanted
        unseen, scaler = self._may_stay_unseen, prepared.accelerator.scaler
        # Looked at before the gradients are: what is skipped must not touch fp16's loss scale.
        if not unseen and not torch.isfinite(loss):
            return False
        prepared.accelerator.unscale_gradients()
        if self._is_due(step + 1, wanted.validation.every_steps):
            self.artifacts.gradients = factors.gradients_by_block(prepared.attachment.layers)
        norm = nn.utils.clip_grad_norm_(
            list(prepared.factors.values()), wanted.optimizer.max_gradient_norm or math.inf
        )
        finite = torch.isfinite(norm)
        if unseen:
            finite &= torch.isfinite(loss)
            optimizers.step_if(finite, prepared.optimizer.optimizer)
            self._unseen.append((step, finite))
        elif finite:
            prepared.optimizer.step()
            self._skipped_in_a_row = 0
        elif scaler is not None:
            # In fp16 gradients overflow now and then: the scaler drops them and lowers itself. When
            # it is so low already, it is not the cause.
            prepared.optimizer.step()
            if scaler.get_scale() < 1:
                return False
        else:
            return False
        prepared.optimizer.zero_grad()
        return True

    def _skip(self, step: int) -> None:
        """Drops the gradients of a step that is not finite, naming its images."""
        self.prepared.optimizer.zero_grad()
        self._skipped_in_a_row += 1
        passes = range(self.prepared.batches.passes)
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
        saved = checkpoint.newest(self.run.checkpoints, self.ranks)
        if saved is None or self.prepared.pace.rate < 1:
            raise NonFinite(
                f"{_MOST_SKIPPED_IN_A_ROW} steps in a row had a loss that is not finite.",
                "Look at the images named in the notices; or resume with a lower "
                "--optimizer.learning_rate or with --base.precision bf16 or fp32.",
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
        if self.ranks.first:
            self._write_what_is_due(done, stop)
        return self._out_of_patience()

    def _write_what_is_due(self, done: int, stop: bool) -> None:
        wanted, artifacts = self.wanted, self.artifacts
        with self.prepared.as_used():
            if self._is_due(done, wanted.validation.every_steps):
                artifacts.validate(done)
        early = self._gets_no_better
        last = early or done == self.steps
        save_due = done % wanted.training.checkpoint_every_steps == 0 or last or stop
        if self._take("save") or save_due or artifacts.is_lowest(done):
            artifacts.checkpoint(done)
        with self.prepared.as_used():
            samples_due = done % wanted.samples.every_steps == 0 or last
            if self._take("sample") or (samples_due and not stop):
                artifacts.sample(done)
        if early:
            self.reporter.notice("Stopping early: the loss has not fallen for a while.")

    def _out_of_patience(self) -> bool:
        """Whether the first process, which measures, finds that going on is of no use."""
        if self.wanted.validation.patience is None:
            return False
        return self.ranks.any(self.ranks.first and self._gets_no_better)

    @property
    def _gets_no_better(self) -> bool:
        patience = self.wanted.validation.patience
        return patience is not None and verdict.out_of_patience(self.artifacts.history, patience)
