"""One attempt at a run, from taking its lock to its last word.

Whatever happens, the run's events end in what happened; only a killed process says nothing, and
then the free lock tells.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from trainer import events
from trainer.data.dataset import Scan, scan
from trainer.errors import AtelierError, DatasetError, OutOfMemory, RunDirectoryError
from trainer.files import sweep
from trainer.model.bases import FolderBase, family_of, resolve
from trainer.run import Run, State
from trainer.settings import Settings

log = logging.getLogger("atelier")

# A request older than this process was meant for another one.
_IMPORTED = time.time()

Listener = Callable[[events.Event], None]


def check(wanted: Settings) -> Scan:
    """Finds what would make a run fail at once, before anything is written or torch is loaded.

    Raises:
        UserError: if the dataset or the base cannot be used.
    """
    if wanted.dataset.folder is None:
        raise DatasetError(
            "There is no dataset.", "Give --dataset.folder, a folder of captioned images."
        )
    reference = resolve(wanted.base.model)
    if isinstance(reference, FolderBase):
        family_of(reference.path)
    return scan(wanted.dataset.folder)


def attempt(run: Run, listen: Listener = lambda event: None, scanned: Scan | None = None) -> State:
    """Trains a run from its newest checkpoint, or from the beginning if there is none.

    Returns FINISHED, or STOPPED if it was asked to stop.

    Raises:
        RunDirectoryError: if another trainer has the run, or it is finished.
        AtelierError: whatever made the run fail; its events say so too.
    """
    wanted = run.settings()
    with run.lock(), _log_to(run), _signals_as_requests(run):
        before = run.status()
        if before.state is State.FINISHED and before.step >= wanted.training.steps:
            raise RunDirectoryError(f"{run.path} is finished.", "Its adapter is in it.")
        attempts = sum(isinstance(event, events.Started) for event in run.read_events()[0])
        if (asked := run.requested_at("stop")) is not None and asked < _IMPORTED:
            run.take("stop")  # left over from a trainer that ended before it saw it
        started = events.Started(
            attempt=attempts + 1, pid=os.getpid(), from_step=run.newest_checkpoint()
        )
        run.append(started)
        listen(started)
        sweep(run.path)
        try:
            return _train(run, wanted, scanned or check(wanted), listen)
        except Exception as error:
            raise _told(run, error, listen) from error


def _train(run: Run, wanted: Settings, scanned: Scan, listen: Listener) -> State:
    # Torch and diffusers take seconds to import; whoever watches has heard `started` by now.
    from trainer.training import checkpoint, memory
    from trainer.training.artifacts import Artifacts
    from trainer.training.loop import Loop
    from trainer.training.objective import Objective
    from trainer.training.prepare import go_on_from, prepare
    from trainer.training.reporter import Reporter

    memory.keep_freed_memory()
    reporter = Reporter(run, wanted.training.steps, listen)
    for notice in scanned.notices:
        reporter.notice(notice)
    saved = checkpoint.newest(run.checkpoints)
    prepared = prepare(wanted, scanned, reporter.preparing, fresh=saved is None)
    start = go_on_from(prepared, saved) if saved else 0
    if saved and (differences := checkpoint.differences(saved)):
        reporter.notice(f"Resuming may not be exact to the bit: {differences}.")
    reporter.say(prepared.summary(wanted))
    earlier = [event for event in run.read_events()[0] if isinstance(event, events.Validated)]
    measured = {event.step: event for event in earlier if event.step <= start}
    artifacts = Artifacts(run, wanted, prepared, reporter, measured)
    objective = Objective(prepared.model, wanted)
    if not Loop(run, wanted, prepared, objective, reporter, artifacts).train(start):
        reporter.say(events.Stopped(step=reporter.done))
        return State.STOPPED
    artifacts.finish(reporter.done)
    return State.FINISHED


def _told(run: Run, error: Exception, listen: Listener) -> AtelierError:
    """The error as one that people understand, after saying it in the run's events."""
    if not isinstance(error, AtelierError):
        log.exception("the run failed")
        error = _translated(error)
    else:
        log.error("%s", error)
    failed = events.Failed(step=run.status().step, message=error.what, advice=error.advice or "")
    run.append(failed)
    listen(failed)
    return error


def _translated(error: Exception) -> AtelierError:
    """Memory and disk running out have their own classes in every library; the rest is a bug."""
    if (
        isinstance(error, MemoryError)
        or "out of memory" in str(error).lower()
        or ("can't allocate memory" in str(error))
    ):
        return OutOfMemory(
            "There is not enough memory for this run.",
            "Lower training.batch_size or dataset.resolution, set base.precision to bf16, or turn "
            "on training.gradient_checkpointing; then resume.",
        )
    if isinstance(error, OSError) and error.errno is not None:
        place = f" ({error.filename})" if error.filename else ""
        return AtelierError(
            f"A file could not be read or written: {error.strerror}{place}.",
            "Make room or mend the permissions, then resume.",
        )
    return AtelierError(
        f"Something unexpected went wrong: {type(error).__name__}: {error}",
        "The log has the details; the run can be resumed from its newest checkpoint.",
    )


@contextmanager
def _log_to(run: Run) -> Iterator[None]:
    """Sends the log to the run's `log.txt`."""
    handler = logging.FileHandler(run.log_file, encoding="utf-8")
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


@contextmanager
def _signals_as_requests(run: Run) -> Iterator[None]:
    """Makes Ctrl-C and SIGTERM a request to stop; a second one ends the process at once."""

    def ask(number: int, frame: FrameType | None) -> None:
        run.request("stop")
        signal.signal(number, signal.SIG_DFL)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
