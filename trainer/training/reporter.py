"""What a trainer says while it works: events in the run directory, and lines in the log.

Losses stay on the device until an event is due, a few times a second, so that a GPU never waits to
be read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainer import events
from trainer.run import Run

log = logging.getLogger("atelier")

_SECONDS_BETWEEN_STEP_EVENTS = 0.5
_SECONDS_BETWEEN_LOG_LINES = 10.0


@dataclass
class Reporter:
    """Says things about one attempt at a run; `listen` hears every event too."""

    run: Run
    steps: int
    listen: Callable[[events.Event], None] = lambda event: None
    done: int = 0
    _unread: list[Tensor] = field(default_factory=list)
    _began: float = 0.0
    _first: int = 0
    _said: float = 0.0
    _logged: float = 0.0

    def say(self, event: events.Event) -> None:
        """Appends an event to the run."""
        self.run.append(event)
        self.listen(event)

    def notice(self, message: str) -> None:
        log.info(message)
        self.say(events.Notice(message=message))

    def preparing(self, stage: str, done: int, total: int) -> None:
        """Work before the first step; said when it begins, ends, and at most twice a second."""
        now = time.monotonic()
        if done in (0, total) or now - self._said > _SECONDS_BETWEEN_STEP_EVENTS:
            self._said = now
            self.say(events.Preparing(stage=stage, done=done, total=total))

    def begin(self, start: int) -> None:
        """Step `start` is about to be done; speeds are measured from here."""
        self.done = self._first = start
        self._began = self._said = self._logged = time.monotonic()

    def step(self, done: int, loss: Tensor, learning_rate: float) -> None:
        """Optimizer step number `done` is done."""
        self.done = done
        self._unread.append(loss)
        now = time.monotonic()
        if now - self._said < _SECONDS_BETWEEN_STEP_EVENTS and done not in (1, self.steps):
            return
        mean = float(torch.stack(self._unread).mean())
        speed = len(self._unread) / max(now - self._said, 1e-9)
        # Validation, samples and checkpoints take time too, so what is left is judged by the whole.
        per_step = (now - self._began) / (done - self._first)
        self._unread.clear()
        self._said = now
        event = events.Step(
            step=done,
            loss=mean,
            learning_rate=learning_rate,
            steps_per_second=speed,
            eta_seconds=per_step * (self.steps - done),
        )
        self.say(event)
        if now - self._logged > _SECONDS_BETWEEN_LOG_LINES or done == self.steps:
            self._logged = now
            log.info("step %d/%d: loss %.4f, %.2f steps/s", done, self.steps, mean, speed)

    def stopping(self, done: int) -> None:
        log.info("asked to stop after step %d", done)
        self.say(events.Stopping(step=done))
