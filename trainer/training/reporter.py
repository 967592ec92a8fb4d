"""What a trainer says while it works: events in the run directory, and lines in the log.

Losses stay on the device until an event is due, a few times a second.
"""

from __future__ import annotations

import errno
import logging
import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from trainer import events
from trainer.run import Run
from trainer.training.forecast import Forecaster

log = logging.getLogger("atelier")

_SECONDS_BETWEEN_STEP_EVENTS = 0.5
_SECONDS_BETWEEN_LOG_LINES = 10.0
_SECONDS_BETWEEN_TRIES = 2.0
_NO_ROOM = "The disk is full. Make room, and the run goes on by itself"
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}

T = TypeVar("T")


class StopAsked(Exception):
    """The run was asked to stop where there is nothing to save: before the first step, or while
    the disk is full."""


@dataclass
class Reporter:
    """Says things about one attempt at a run; `listen` hears every event too. A `mute` one says
    nothing: of several processes that share a run, only the first speaks."""

    run: Run
    steps: int
    forecaster: Forecaster
    listen: Callable[[events.Event], None] = lambda event: None
    mute: bool = False
    done: int = 0
    skipped: int = 0
    unreadable: set[Path] = field(default_factory=set)
    _unread: list[Tensor] = field(default_factory=list)
    _made: float = field(default_factory=time.monotonic)
    _began: float = 0.0
    _first: int = 0
    _said: float = 0.0
    _logged: float = 0.0

    def say(self, event: events.Event) -> None:
        """Appends an event to the run."""
        if self.mute:
            return
        self.when_there_is_room(lambda: self.run.append(event))
        self.forecaster.heard(event)
        self.listen(event)

    def notice(self, message: str) -> None:
        log.info(message)
        self.say(events.Notice(message=message))

    def preparing(self, stage: str, done: int, total: int) -> None:
        """Work before the first step; said when it begins, ends, and at most twice a second.

        Raises:
            StopAsked: if the run was asked to stop.
        """
        if self.mute:
            return
        if self.run.take("stop"):
            raise StopAsked
        now = time.monotonic()
        if done in (0, total) or now - self._said > _SECONDS_BETWEEN_STEP_EVENTS:
            self._said = now
            self.say(events.Preparing(stage=stage, done=done, total=total))

    def left_out(self, files: Iterable[Path]) -> None:
        """Images that vanished or broke after the run began; each is said once."""
        for file in sorted(set(files) - self.unreadable):
            self.unreadable.add(file)
            self.notice(f"{file.name} is left out: it cannot be read any more, or has changed.")

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
        if forecast := self.forecaster.step(done, device):
            self.say(forecast)
        due = now - self._said >= _SECONDS_BETWEEN_STEP_EVENTS or done in (1, self.steps)
        if not (due and self._unread):
            return
        # A step that is not finite may still be waiting to be noticed; see `loop`.
        finite = [loss for loss in torch.stack(self._unread).tolist() if math.isfinite(loss)]
        if not finite:
            return
        mean = sum(finite) / len(finite)
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
        """Does a write, again and again while the disk is full; meanwhile the run is paused.

        Raises:
            StopAsked: if the run was asked to stop while it waited.
            OSError: any failure but a full disk.
        """
        waited = False
        while True:
            try:
                done = write()
                break
            except OSError as error:
                if error.errno not in _DISK_FULL:
                    raise
            if self.run.take("stop"):
                raise StopAsked
            if not waited:
                waited = True
                log.warning("%s", _NO_ROOM)
                self.run.release()
                self._say_if_possible(events.Paused(message=_NO_ROOM))
            time.sleep(_SECONDS_BETWEEN_TRIES)
        if waited:
            log.info("there is room again; going on")
            self._say_if_possible(events.Continued())
            self.run.reserve()
        return done

    def _say_if_possible(self, event: events.Event) -> None:
        with suppress(OSError):  # others took the room first; who listens hears of it at least
            self.run.append(event)
        self.listen(event)
