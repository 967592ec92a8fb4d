"""What a trainer says about its run: one JSON object a line in `events.jsonl`.

Only the trainer appends; anyone reads. A line is written with one system call, so a reader sees
whole lines, except for the last one after a crash, which is ignored and closed by the next writer.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError


class Event(BaseModel):
    """Base of all events. `time` is seconds since 1970, UTC."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    time: float = Field(default_factory=time.time)


class Started(Event):
    """A trainer process has taken the run: the first event of every attempt.

    `attempt` counts from 1; a resumed run has several. `pid` names the process.
    """

    type: Literal["started"] = "started"
    attempt: int
    pid: int
    from_step: int = 0


class Preparing(Event):
    """Work before the first step: `stage` in words, `done` of `total` parts of it."""

    type: Literal["preparing"] = "preparing"
    stage: str
    done: int = 0
    total: int = 0


class Ready(Event):
    """Training is about to begin, with what it is about to train; `environment` has the versions,
    threads and processors that its bits depend on."""

    type: Literal["ready"] = "ready"
    device: str
    precision: str
    steps: int
    images: int
    held_out: int
    trained_parameters: int
    base_parameters: int
    file_bytes: int
    environment: dict[str, str | int] = Field(default_factory=dict)


class Step(Event):
    """Optimizer steps up to `step` are done. `loss` is the mean since the previous such event;
    `eta_seconds` the time that the remaining steps need at the present speed."""

    type: Literal["step"] = "step"
    step: int
    loss: float
    learning_rate: float
    steps_per_second: float
    eta_seconds: float


class Validated(Event):
    """Losses at fixed noise and timesteps; `base_…` without the adapter. `held_out` is None if no
    image was set aside. By block: `change` is ‖ΔW‖ / ‖W‖, `gradients` the last step's norms.
    `seconds` is how long measuring took."""

    type: Literal["validated"] = "validated"
    step: int
    training: float
    base_training: float
    held_out: float | None = None
    base_held_out: float | None = None
    change: dict[str, float] = Field(default_factory=dict)
    gradients: dict[str, float] = Field(default_factory=dict)
    seconds: float = 0.0

    @property
    def improvement(self) -> float | None:
        """The share by which the held-out loss is below the base's; None if none was measured."""
        if self.held_out is None or not self.base_held_out:
            return None
        return 1 - self.held_out / self.base_held_out

    @property
    def words(self) -> str:
        """The measurement in a sentence."""
        share = self.improvement
        which, now, before = "held-out", self.held_out, self.base_held_out
        if share is None or now is None or before is None:
            which, now, before = "training", self.training, self.base_training
            share = 1 - now / before
        side = "below" if share >= 0 else "above"
        return f"loss on {which} images {now:.4f}, {abs(share):.1%} {side} the base's {before:.4f}"


class Forecast(Event):
    """What this attempt will take from its start to its end, judged by its first steps, with the
    measurements, samples and checkpoints that are still to come; said again when things go
    otherwise. Memory is in bytes; None is unknown. `fits` says whether the most used so far is
    safely within what there is."""

    type: Literal["forecast"] = "forecast"
    seconds_per_step: float
    total_seconds: float
    peak_memory: int | None = None
    memory: int | None = None
    fits: bool | None = None

    @property
    def words(self) -> str:
        """The forecast in a sentence or two."""
        said = f"About {spoken_duration(self.total_seconds)} in all"
        if self.peak_memory is not None:
            said += f", {self.peak_memory / 1e9:.1f} GB"
            if self.memory is not None:
                said += f" of {self.memory / 1e9:.0f} GB"
            said += " of memory"
        return f"{said}." if self.fits is not False else f"{said}: it hardly fits."


class Verdict(Event):
    """What the measurements amount to, in words."""

    type: Literal["verdict"] = "verdict"
    step: int
    kind: Literal["learning", "not_learning", "too_hot", "overfitting"]
    message: str


class Recommended(Event):
    """The checkpoint to use, of those measured so far: its adapter `file`, relative to the run
    directory, and why, in words."""

    type: Literal["recommended"] = "recommended"
    step: int
    file: str
    why: str


class CheckpointSaved(Event):
    """A checkpoint is on disk; `file` is its adapter, relative to the run directory. It took
    `seconds` to write."""

    type: Literal["checkpoint"] = "checkpoint"
    step: int
    file: str
    seconds: float = 0.0


class Sampled(Event):
    """Sample images are on disk; `files`, one a prompt, are relative to the run directory. They
    took `seconds` to draw. Those of step 0 are the base's."""

    type: Literal["sampled"] = "sampled"
    step: int
    files: tuple[str, ...]
    prompts: tuple[str, ...]
    seconds: float = 0.0


class Changed(Event):
    """A resumed run has other settings than before: `changes` has, by dotted name, what a setting
    was and what it is, both as text."""

    type: Literal["changed"] = "changed"
    changes: dict[str, tuple[str, str]]

    @property
    def message(self) -> str:
        """The changes in a sentence."""
        said = (f"{name} was {old}, is {new}" for name, (old, new) in self.changes.items())
        return f"Changed: {'; '.join(said)}."


class Paused(Event):
    """The run waits for something that only a person can do, said in `message`."""

    type: Literal["paused"] = "paused"
    message: str


class Continued(Event):
    """What a pause waited for has come."""

    type: Literal["continued"] = "continued"


class Notice(Event):
    """Something that a person should know, and that does not end the run."""

    type: Literal["notice"] = "notice"
    message: str


class Stopping(Event):
    """A request to stop has been seen; the step at hand is finished and saved."""

    type: Literal["stopping"] = "stopping"
    step: int


class Stopped(Event):
    """The run ended because it was asked to; it can be resumed."""

    type: Literal["stopped"] = "stopped"
    step: int


class Finished(Event):
    """All steps are done; `adapter` is the file, relative to the run directory."""

    type: Literal["finished"] = "finished"
    step: int
    adapter: str


class Failed(Event):
    """The run ended by an error: what happened, and what to do."""

    type: Literal["failed"] = "failed"
    step: int
    message: str
    advice: str = ""


def spoken_duration(seconds: float) -> str:
    """A length of time as one would say it."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 10:
        return f"{minutes} min {rest} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


Ending = Stopped | Finished | Failed  # the last word of an attempt

AnyEvent = Annotated[
    Started
    | Preparing
    | Ready
    | Step
    | Validated
    | Forecast
    | Verdict
    | Recommended
    | CheckpointSaved
    | Sampled
    | Changed
    | Paused
    | Continued
    | Notice
    | Stopping
    | Stopped
    | Finished
    | Failed,
    Field(discriminator="type"),
]
_parser: TypeAdapter[AnyEvent] = TypeAdapter(AnyEvent)


def append(path: Path, event: Event) -> None:
    """Appends one event as one line. An unfinished last line is closed first.

    Only the holder of the run's lock may call this. Events that end a run are synced to disk.
    """
    line = event.model_dump_json().encode() + b"\n"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
    try:
        size = os.lseek(handle, 0, os.SEEK_END)
        if size:
            os.lseek(handle, size - 1, os.SEEK_SET)
            if os.read(handle, 1) != b"\n":
                line = b"\n" + line
        if os.write(handle, line) != len(line):  # the next writer closes the torn line
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        if isinstance(event, Ending):
            os.fsync(handle)
    finally:
        os.close(handle)


def read(path: Path, offset: int = 0) -> tuple[list[AnyEvent], int]:
    """The events from byte `offset` on, and the offset at which the next call goes on.

    A last line without an end is left for the next call. Lines that are not events that this
    version knows are skipped: a newer trainer may say more than an older reader understands.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read()
    except FileNotFoundError:
        return [], 0
    whole, _, _ = content.rpartition(b"\n")
    end = offset + (len(whole) + 1 if whole or content.startswith(b"\n") else 0)
    return list(parse_lines(whole.splitlines())), end


def parse_lines(lines: Iterable[bytes]) -> Iterable[AnyEvent]:
    """The known events among `lines`."""
    for line in lines:
        try:
            yield _parser.validate_json(line)
        except ValidationError:
            continue
