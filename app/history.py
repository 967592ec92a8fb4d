"""What has happened in each run, read from its events as they grow and shared by all open pages."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from trainer import events
from trainer.run import Run, Status


@dataclass(frozen=True)
class History:
    """A run's status with what led to it; `losses` are (step, loss) of the attempts in force."""

    status: Status
    losses: tuple[tuple[int, float], ...] = ()
    validations: tuple[events.Validated, ...] = ()
    samples: tuple[events.Sampled, ...] = ()
    checkpoints: tuple[events.CheckpointSaved, ...] = ()
    notices: tuple[events.Notice | events.Changed, ...] = ()
    verdicts: tuple[events.Verdict, ...] = ()
    ready: events.Ready | None = None
    forecast: events.Forecast | None = None
    recommended: events.Recommended | None = None


_OF_A_STEP = (
    events.Validated,
    events.Verdict,
    events.Sampled,
    events.CheckpointSaved,
    events.Recommended,
)
_E = TypeVar("_E", bound=events.Event)


@dataclass
class _Tail:
    """The part of a run's events that has been read so far.

    `kept` has all events but those of single steps, of which only the newest stays.
    """

    offset: int = 0
    kept: list[events.AnyEvent] = field(default_factory=list)
    losses: list[tuple[int, float]] = field(default_factory=list)

    def take(self, event: events.AnyEvent) -> None:
        if isinstance(event, events.Step):
            self.losses.append((event.step, event.loss))
            if self.kept and isinstance(self.kept[-1], events.Step):
                self.kept.pop()
        elif isinstance(event, events.Started):
            self._rewind(event.from_step)
        self.kept.append(event)

    def all(self, kind: type[_E]) -> tuple[_E, ...]:
        """The kept events of a kind, oldest first."""
        return tuple(event for event in self.kept if isinstance(event, kind))

    def last(self, kind: type[_E]) -> _E | None:
        """The newest of a kind; None if there is none."""
        return next((event for event in reversed(self.kept) if isinstance(event, kind)), None)

    def _rewind(self, step: int) -> None:
        """Forgets what came after the checkpoint from which a new attempt goes on."""
        self.losses = [point for point in self.losses if point[0] <= step]
        self.kept = [
            event
            for event in self.kept
            if not (isinstance(event, _OF_A_STEP) and event.step > step)
        ]


class Histories:
    """The histories of all runs. Each file is read once, from where the last reader stopped."""

    def __init__(self) -> None:
        self._tails: dict[Path, _Tail] = {}
        self._one_reader = threading.Lock()

    def of(self, run: Run) -> History:
        """The history of a run up to now."""
        with self._one_reader:
            status = run.status_by(lambda: self._read(run).kept)
            return _history(status, self._tails[run.path])

    def _read(self, run: Run) -> _Tail:
        tail = self._tails.setdefault(run.path, _Tail())
        size = run.events_file.stat().st_size if run.events_file.exists() else 0
        if size < tail.offset:  # another run took the directory's name
            tail = self._tails[run.path] = _Tail()
        if size > tail.offset:
            fresh, tail.offset = run.read_events(tail.offset)
            for event in fresh:
                tail.take(event)
        return tail


def _history(status: Status, tail: _Tail) -> History:
    notices = (e for e in tail.kept if isinstance(e, events.Notice | events.Changed))
    return History(
        status=status,
        losses=tuple(tail.losses),
        validations=tail.all(events.Validated),
        samples=tail.all(events.Sampled),
        checkpoints=tail.all(events.CheckpointSaved),
        notices=tuple(notices),
        verdicts=tail.all(events.Verdict),
        ready=tail.last(events.Ready),
        forecast=tail.last(events.Forecast),
        recommended=tail.last(events.Recommended),
    )
