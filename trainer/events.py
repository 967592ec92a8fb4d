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
    """Training is about to begin, with what it is about to train."""

    type: Literal["ready"] = "ready"
    device: str
    precision: str
    steps: int
    images: int
    held_out: int
    trained_parameters: int
    base_parameters: int
    file_bytes: int


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
    image was set aside. By block: `change` is ‖ΔW‖ / ‖W‖, `gradients` the last step's norms."""

    type: Literal["validated"] = "validated"
    step: int
    training: float
    base_training: float
    held_out: float | None = None
    base_held_out: float | None = None
    change: dict[str, float] = Field(default_factory=dict)
    gradients: dict[str, float] = Field(default_factory=dict)

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
    """What the run will take, judged by its first steps. Memory is in bytes; None is unknown."""

    type: Literal["forecast"] = "forecast"
    seconds_per_step: float
    total_seconds: float
    peak_memory: int | None = None
    memory: int | None = None


class Verdict(Event):
    """What the measurements amount to, in words."""

    type: Literal["verdict"] = "verdict"
    step: int
    kind: Literal["learning", "not_learning", "too_hot", "overfitting"]
    message: str


class CheckpointSaved(Event):
    """A checkpoint is on disk; `file` is its adapter, relative to the run directory."""

    type: Literal["checkpoint"] = "checkpoint"
    step: int
    file: str


class Sampled(Event):
    """Sample images are on disk; `files`, one a prompt, are relative to the run directory."""

    type: Literal["sampled"] = "sampled"
    step: int
    files: tuple[str, ...]
    prompts: tuple[str, ...]


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


AnyEvent = Annotated[
    Started
    | Preparing
    | Ready
    | Step
    | Validated
    | Forecast
    | Verdict
    | CheckpointSaved
    | Sampled
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
        if isinstance(event, Stopped | Finished | Failed):
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
