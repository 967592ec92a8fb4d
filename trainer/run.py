"""The run directory: the only interface between a trainer and everyone else.

settings.json   written once         lock      held by the trainer for as long as it lives
events.jsonl    appended             log.txt   for people
control/        requests: made by others, taken and removed by the trainer
checkpoints/    samples/    adapter.safetensors    report.json

The status of a run is derived from these and stored nowhere, so that no crash can leave a lie.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

import filelock

from trainer import events, settings_file, states
from trainer.errors import RunDirectoryError
from trainer.files import TEMPORARY_SUFFIX, held
from trainer.settings import Settings

Request = Literal["stop", "save", "sample"]
REQUESTS: tuple[Request, ...] = ("stop", "save", "sample")

_RESERVED_BYTES = 1 << 15

# Someone who looks whether the lock is held is in a taker's way for microseconds.
_LOCK_PATIENCE_SECONDS = 0.2


class State(StrEnum):
    """What a run is doing, as far as the disk and the lock tell."""

    DRAFT = "draft"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"
    FINISHED = "finished"
    FAILED = "failed"

    @property
    def alive(self) -> bool:
        """Whether a trainer is at work on it."""
        return self in (State.STARTING, State.RUNNING, State.PAUSED, State.STOPPING)

    @property
    def resumable(self) -> bool:
        """Whether it makes sense to go on with it."""
        return self in (State.STOPPED, State.INTERRUPTED, State.FAILED)


@dataclass(frozen=True)
class Status:
    """The state of a run with its latest figures; `step` counts optimizer steps done."""

    state: State
    step: int = 0
    steps: int = 0
    loss: float | None = None
    eta_seconds: float | None = None
    steps_per_second: float | None = None
    message: str = ""
    advice: str = ""
    pid: int | None = None
    attempt: int = 0


@dataclass(frozen=True)
class Run:
    """A run directory. The path need not exist until `create`."""

    path: Path

    @property
    def settings_file(self) -> Path:
        return self.path / "settings.json"

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def log_file(self) -> Path:
        return self.path / "log.txt"

    @property
    def adapter_file(self) -> Path:
        return self.path / "adapter.safetensors"

    @property
    def report_file(self) -> Path:
        return self.path / "report.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    def create(self, wanted: Settings) -> None:
        """Makes the directory and writes its settings.

        Raises:
            RunDirectoryError: if it holds a run already, something else, or cannot be written.
        """
        if self.settings_file.exists():
            state = self.status().state
            advice = (
                f"Go on with it by `atelier resume {self.path}`, or give another --run."
                if state.resumable
                else "Give another --run, or remove that directory."
            )
            raise RunDirectoryError(f"{self.path} already holds a run, which is {state}.", advice)
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise RunDirectoryError(
                f"{self.path} exists and is not an empty folder.", "Give another --run."
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            wanted.save(self.settings_file)
        except OSError as error:
            raise RunDirectoryError(
                f"{self.path} cannot be written: {error.strerror}.",
                "Choose a folder that you may write to, on a disk with room.",
            ) from None

    def settings(self) -> Settings:
        """The settings that the run was created with.

        Raises:
            RunDirectoryError: if the directory holds no run.
            SettingsError: if its settings are broken.
        """
        if not self.settings_file.is_file():
            raise RunDirectoryError(
                f"{self.path} holds no run: it has no settings.json.",
                "Give the folder that `atelier train --run` made.",
            )
        return settings_file.load(self.settings_file)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run for as long as the block lasts; the system frees it if the process dies.

        Raises:
            RunDirectoryError: naming the holder's pid, if another trainer has it.
        """
        lock = filelock.FileLock(self.path / "lock", timeout=_LOCK_PATIENCE_SECONDS)
        while not lock.is_locked:
            try:
                lock.acquire(poll_interval=0.02)
            except filelock.Timeout:
                if self.locked():  # by a trainer, then, not by others who looked
                    raise self._in_use() from None
        try:
            yield
        finally:
            lock.release()

    def locked(self) -> bool:
        """Whether a trainer holds the run right now."""
        return held(self.path / "lock")

    def _in_use(self) -> RunDirectoryError:
        pid = self.status().pid
        return RunDirectoryError(
            f"{self.path} is in use by another trainer{f' (process {pid})' if pid else ''}.",
            f"Wait for it, or stop it by `atelier stop {self.path}`.",
        )

    def append(self, event: events.Event) -> None:
        """Says something about the run; only for the holder of the lock. Before its last word the
        room that was set aside is given back: for the word, and since nothing is tidied after it.
        """
        if isinstance(event, events.Ending):
            self.release()
        events.append(self.events_file, event)

    def read_events(self, offset: int = 0) -> tuple[list[events.AnyEvent], int]:
        """Events from byte `offset` on, and the offset for the next call."""
        return events.read(self.events_file, offset)

    def request(self, wanted: Request) -> None:
        """Asks the trainer for something; asking twice is asking once."""
        control = self.path / "control"
        control.mkdir(exist_ok=True)
        (control / wanted).touch()

    def requested(self) -> frozenset[Request]:
        """What has been asked and not yet taken."""
        return frozenset(name for name in REQUESTS if (self.path / "control" / name).exists())

    def requested_at(self, wanted: Request) -> float | None:
        """When something was asked for, in seconds since 1970; None if it was not."""
        try:
            return (self.path / "control" / wanted).stat().st_mtime
        except FileNotFoundError:
            return None

    def newest_checkpoint(self) -> int:
        """The step of the newest checkpoint that a resumed run would go on from; 0 if none. It is
        read and its hash is checked."""
        place = states.newest(self.checkpoints)
        return states.step_of(place) if place else 0

    def reserve(self) -> None:
        """Sets some room aside, so that even on a full disk the run can say that it waits."""
        with contextlib.suppress(OSError):  # then there was none to set aside
            self._reserved.write_bytes(os.urandom(_RESERVED_BYTES))  # random: it cannot be packed

    def release(self) -> None:
        """Gives the room back that was set aside."""
        self._reserved.unlink(missing_ok=True)

    @property
    def _reserved(self) -> Path:
        return self.path / f"reserved{TEMPORARY_SUFFIX}"

    def take(self, wanted: Request) -> bool:
        """Removes a request and says whether there was one; only for the trainer."""
        try:
            (self.path / "control" / wanted).unlink()
        except FileNotFoundError:
            return False
        return True

    def status(self) -> Status:
        """What the run is doing, from its events and its lock."""
        return self.status_by(lambda: self.read_events()[0])

    def status_by(self, read: Callable[[], list[events.AnyEvent]]) -> Status:
        """The same for who keeps the events: `read` gives all that there are when it is called."""
        # The lock is looked at first: a trainer that ends in between has then said so already.
        locked = self.locked()
        status = derive_status(read(), locked, stop_requested="stop" in self.requested())
        if status.state is State.INTERRUPTED and not locked and self.locked():
            # A trainer has begun in between.
            return derive_status(read(), True, stop_requested="stop" in self.requested())
        return status


def derive_status(
    history: list[events.AnyEvent], locked: bool, stop_requested: bool = False
) -> Status:
    """The status that a run's events and lock amount to; a pure function.

    An ending event says what the run is; else a held lock says that it is alive; else a run that
    was begun has been interrupted.
    """
    figures: dict[str, object] = {}
    state = before_pause = State.DRAFT
    for event in history:
        match event:
            case events.Started():
                figures |= {"pid": event.pid, "attempt": event.attempt, "step": event.from_step}
                figures |= {"message": "", "advice": "", "eta_seconds": None}
                state = State.STARTING
            case events.Preparing():
                figures["message"] = event.stage
            case events.Ready():
                figures |= {"steps": event.steps, "message": ""}
                state = State.RUNNING
            case events.Step():
                figures |= {"step": event.step, "loss": event.loss, "message": ""}
                figures |= {
                    "eta_seconds": event.eta_seconds,
                    "steps_per_second": event.steps_per_second,
                }
            case events.Paused():
                figures["message"] = event.message
                before_pause, state = state, State.PAUSED
            case events.Continued():
                figures["message"] = ""
                state = before_pause
            case events.Stopping():
                state = State.STOPPING
            case events.Stopped():
                figures["step"] = event.step
                state = State.STOPPED
            case events.Finished():
                figures["step"] = event.step
                state = State.FINISHED
            case events.Failed():
                figures |= {"step": event.step, "message": event.message, "advice": event.advice}
                state = State.FAILED
            case _:
                continue
    if state.alive and not locked:
        state = State.INTERRUPTED
    elif state.alive and stop_requested:
        state = State.STOPPING
    elif state is State.DRAFT and locked:
        state = State.STARTING
    return Status(state=state, **figures)  # type: ignore[arg-type]
