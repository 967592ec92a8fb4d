"""What a trainer says while it works: events in the run directory, and lines in the log.

Losses stay on the device until an event is due, a few times a second.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from trainer import events
from trainer.run import Run
from trainer.training import memory

log = logging.getLogger("atelier")

_SECONDS_BETWEEN_STEP_EVENTS = 0.5
_SECONDS_BETWEEN_LOG_LINES = 10.0
_SECONDS_BETWEEN_TRIES = 2.0
_STEPS_OF_A_FORECAST = 5
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}

T = TypeVar("T")


@dataclass
class Reporter:
    """Says things about one attempt at a run; `listen` hears every event too."""

    run: Run
    steps: int
    listen: Callable[[events.Event], None] = lambda event: None
    done: int = 0
    skipped: int = 0
    _unread: list[Tensor] = field(default_factory=list)
    _made: float = field(default_factory=time.monotonic)
    _began: float = 0.0
    _first: int = 0
    _said: float = 0.0
    _logged: float = 0.0

    def say(self, event: events.Event) -> None:
        """Appends an event to the run."""
        self.when_there_is_room(lambda: self.run.append(event))
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
        self._unread.clear()
        self._began = self._said = self._logged = time.monotonic()

    def step(self, done: int, loss: Tensor | None, rate: float, device: torch.device) -> None:
        """Optimizer step number `done` is done; a skipped one has no loss."""
        self.done = done
        if loss is not None:
            self._unread.append(loss)
        now = time.monotonic()
        if done - self._first == _STEPS_OF_A_FORECAST:
            self._forecast(now, device)
        due = now - self._said >= _SECONDS_BETWEEN_STEP_EVENTS or done in (1, self.steps)
        if not (due and self._unread):
            return
        mean = float(torch.stack(self._unread).mean())
        speed = len(self._unread) / max(now - self._said, 1e-9)
        # Validation, samples and checkpoints take time too, so what is left is judged by the whole.
        per_step = (now - self._began) / (done - self._first)
        self._unread.clear()
        self._said = now
        self.say(
            events.Step(
                step=done,
                loss=mean,
                learning_rate=rate,
                steps_per_second=speed,
                eta_seconds=per_step * (self.steps - done),
            )
        )
        if now - self._logged > _SECONDS_BETWEEN_LOG_LINES or done == self.steps:
            self._logged = now
            log.info("step %d/%d: loss %.4f, %.2f steps/s", done, self.steps, mean, speed)

    def stopping(self, done: int) -> None:
        log.info("asked to stop after step %d", done)
        self.say(events.Stopping(step=done))

    def seconds(self) -> float:
        """Time since this attempt began to load."""
        return time.monotonic() - self._made

    def when_there_is_room(self, write: Callable[[], T]) -> T:
        """Does a write, again and again while the disk is full; a stop ends the wait.

        Raises:
            OSError: any other failure, or a full disk after a request to stop.
        """
        waited = False
        while True:
            try:
                return write()
            except OSError as error:
                if error.errno not in _DISK_FULL or self.run.take("stop"):
                    raise
                if not waited:
                    log.warning("the disk is full; going on as soon as there is room")
                    self.listen(events.Notice(message="The disk is full. Make room to go on."))
                waited = True
                time.sleep(_SECONDS_BETWEEN_TRIES)

    def _forecast(self, now: float, device: torch.device) -> None:
        per_step = (now - self._began) / _STEPS_OF_A_FORECAST
        self.say(
            events.Forecast(
                seconds_per_step=per_step,
                total_seconds=per_step * (self.steps - self._first),
                peak_memory=memory.peak_bytes(device),
                memory=memory.total_bytes(device),
            )
        )
