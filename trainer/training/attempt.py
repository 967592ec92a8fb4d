"""One attempt at a run, from taking its lock to its last word.

Whatever happens, the run's events end in what happened; only a killed process says nothing, and
then the free lock tells.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, Any

from trainer import events
from trainer.adapter.block_rules import block_rates
from trainer.adapter.footprint import plan_on
from trainer.data.dataset import Scan, scan
from trainer.data.names import shown
from trainer.errors import (
    AtelierError,
    DatasetError,
    OutOfMemory,
    ProcessLost,
    RunDirectoryError,
    means_no_memory,
)
from trainer.fields import flatten
from trainer.files import cache_folder, sweep
from trainer.model.bases import HubBase, resolve
from trainer.model.describe import describe
from trainer.model.shapes import outline
from trainer.run import Request, Run, State
from trainer.settings import Settings
from trainer.settings_file import parse
from trainer.training.contents import differences
from trainer.training.ranks import Ranks, here

if TYPE_CHECKING:
    from trainer.training.prepare import Prepared
    from trainer.training.reporter import Reporter

log = logging.getLogger("atelier")

# A request older than this process was meant for another one.
_IMPORTED = time.time()

# Signals this close together are one.
_SECONDS_OF_ONE_REQUEST = 0.5

Listener = Callable[[events.Event], None]


def check(wanted: Settings) -> Scan:
    """Finds what would make a run fail at once, before anything is written or torch is loaded.

    Raises:
        UserError: if the dataset or the base cannot be used, or the base is here and lacks layers
            that the settings name.
    """
    if wanted.dataset.folder is None:
        raise DatasetError(
            "There is no dataset.", "Give --dataset.folder, a folder of captioned images."
        )
    reference = resolve(wanted.base.model)
    if not isinstance(reference, HubBase):
        describe(reference.path)
    if (base := outline(wanted.base.model)) is not None:
        block_rates(wanted.optimizer, plan_on(base, wanted.adapter))
    dataset, cache = wanted.dataset, cache_folder()
    folder, others = wanted.dataset.folder, dataset.class_folder
    if others is None:
        return scan(folder, cache, dataset.mask_folder)
    if folder.resolve().is_relative_to(others.resolve()):
        raise DatasetError(
            f"dataset.class_folder {shown(others)} holds the dataset itself.",
            "Give a folder of other pictures of the same class.",
        )
    of_class = scan(others, cache, caption=dataset.class_prompt or "")
    scanned = scan(folder, cache, dataset.mask_folder, others)
    told = tuple(f"Of the regularisation images: {notice}" for notice in of_class.notices)
    return replace(scanned, notices=scanned.notices + told)


def attempt(run: Run, listen: Listener = lambda event: None, scanned: Scan | None = None) -> State:
    """Trains a run from its newest checkpoint, or from the beginning if there is none.

    Returns FINISHED, or STOPPED if it was asked to stop.

    Raises:
        RunDirectoryError: if another trainer has the run, or it is finished.
        AtelierError: whatever made the run fail; its events say so too.
    """
    ranks = here()
    if not ranks.first:
        return _assist(run, ranks)
    wanted = run.settings()
    with run.lock(), _log_to(run), _signals_as_requests(lambda: run.request("stop")):
        before = run.status()
        if before.state is State.FINISHED and before.step >= wanted.training.steps:
            raise RunDirectoryError(f"{run.path} is finished.", "Its adapter is in it.")
        attempts = sum(isinstance(event, events.Started) for event in run.read_events()[0])
        if (asked := run.requested_at("stop")) is not None and asked < _IMPORTED:
            run.take("stop")  # left over from a trainer that ended before it saw it
        started = events.Started(
            attempt=attempts + 1, pid=os.getpid(), from_step=run.newest_checkpoint()
        )
        try:
            sweep(run.path)
            run.append(started)
            listen(started)
            run.reserve()
            return _train(run, ranks, run.requested, listen, wanted, scanned or check(wanted))
        except ProcessLost as error:  # the run has no last word, so it is interrupted
            log.error("%s", error)
            raise
        except Exception as error:
            raise _told(run, error, listen) from error
        finally:
            run.release()
            run.take("stop")  # asked twice, or too late: the run has ended anyway


def _assist(run: Run, ranks: Ranks) -> State:
    """Does the part of one more process in a run that the first one owns."""
    asked: set[Request] = set()
    with _signals_as_requests(lambda: asked.add("stop")):
        return _train(run, ranks, lambda: frozenset(asked))


def _train(
    run: Run,
    ranks: Ranks,
    requested: Callable[[], frozenset[Request]],
    listen: Listener = lambda event: None,
    wanted: Settings | None = None,
    scanned: Scan | None = None,
) -> State:
    """Trains; a process that is not the first gets the settings from there."""
    # Torch and diffusers take seconds to import; whoever watches has heard `started` by now.
    from trainer.training import memory
    from trainer.training.forecast import Forecaster
    from trainer.training.reporter import Reporter, StopAsked

    memory.keep_freed_memory()
    ranks.join()
    if (content := ranks.share(wanted.to_json().encode() if wanted else None)) and not wanted:
        wanted = parse(json.loads(content))
    assert wanted is not None
    forecaster = Forecaster(wanted)
    reporter = Reporter(run, wanted.training.steps, forecaster, listen, mute=not ranks.first)
    try:
        return _work(run, wanted, scanned or check(wanted), reporter, ranks, requested)
    except StopAsked:
        stopped = events.Stopped(step=run.newest_checkpoint())
        run.append(stopped)
        listen(stopped)
        return State.STOPPED


def _work(
    run: Run,
    wanted: Settings,
    scanned: Scan,
    reporter: Reporter,
    ranks: Ranks,
    requested: Callable[[], frozenset[Request]],
) -> State:
    from trainer.training import checkpoint, optimizers
    from trainer.training.artifacts import Artifacts
    from trainer.training.loop import Loop
    from trainer.training.objective import Objective
    from trainer.training.prepare import go_on_from, prepare

    for notice in (*scanned.notices, *optimizers.notices(wanted.optimizer)):
        reporter.notice(notice)
    if ranks.size > 1:
        reporter.notice(ranks.words(wanted))
    saved = checkpoint.newest(run.checkpoints, ranks)
    if ranks.first:
        checkpoint.drop_after(run.checkpoints, saved.step if saved else 0)
    prepared = prepare(wanted, scanned, reporter.preparing, saved)
    reporter.left_out(prepared.unreadable)
    _require_same_images(prepared, ranks)
    environment = checkpoint.environment(wanted, prepared.model.device)
    start = go_on_from(prepared, saved) if saved else 0
    reporter.skipped = saved.extra.get("skipped", 0) if saved else 0
    if saved and (change := checkpoint.differences(saved.environment, environment)):
        reporter.notice(f"Resuming may not be exact to the bit: {change}.")
    if saved and (changes := _changes(saved.settings, wanted)):
        reporter.say(events.Changed(changes=changes))
    reporter.say(prepared.summary(wanted, environment))
    artifacts = Artifacts(run, wanted, prepared, reporter)
    artifacts.remember(run.read_events()[0], start)
    before = saved.extra.get("contents", prepared.contents) if saved else prepared.contents
    if change := differences(before, prepared.contents):
        reporter.notice(
            f"The dataset has changed since step {start} ({change}). The run goes on with what is "
            "there now; what was measured before is not compared with what follows."
        )
        artifacts.forget()
    objective = Objective(prepared.model, wanted, prepared.conditions)
    loop = Loop(run, wanted, prepared, objective, reporter, artifacts, ranks, requested)
    if not loop.train(start):
        if ranks.first:
            artifacts.report(reporter.done)
        reporter.say(events.Stopped(step=reporter.done))
        return State.STOPPED
    if ranks.first:
        artifacts.finish(reporter.done)
    return State.FINISHED


def _require_same_images(prepared: Prepared, ranks: Ranks) -> None:
    """Makes sure that all processes, on whatever machines, learn from the same images.

    Raises:
        DatasetError: naming those that differ from the first process's.
    """
    mine = json.dumps(dict(prepared.contents)).encode()
    first = ranks.share(mine) or b"{}"
    if change := differences(json.loads(first), prepared.contents):
        raise DatasetError(
            f"The images differ from those of the first process: {change}.",
            "Give all machines the same dataset folder.",
        )


def _changes(before: Mapping[str, Any], now: Settings) -> dict[str, tuple[str, str]]:
    """What differs between the settings of a checkpoint and those of now, as text by name."""
    old, new = flatten(dict(before)), flatten(now.model_dump(mode="json"))
    return {
        name: (str(old[name]), str(value))
        for name, value in new.items()
        if name in old and old[name] != value
    }


def _told(run: Run, error: Exception, listen: Listener) -> AtelierError:
    """The error as one that people understand, after saying it in the run's events."""
    if not isinstance(error, AtelierError):
        log.exception("the run failed")
        error = _translated(error)
    else:
        log.error("%s", error)
    failed = events.Failed(step=run.status().step, message=error.what, advice=error.advice or "")
    try:
        run.append(failed)
    except OSError as silenced:  # then the free lock tells that the run was interrupted
        log.error("the failure could not be written down: %s", silenced)
    listen(failed)
    return error


def _translated(error: Exception) -> AtelierError:
    """Memory and disk running out have their own classes in every library; the rest is a bug."""
    if means_no_memory(error):
        return OutOfMemory(
            "There is not enough memory for this run.",
            "Close other programs and resume, with --training.gradient_checkpointing true or "
            "--base.precision bf16; or begin a new run with a lower dataset.resolution.",
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


class _Log(logging.FileHandler):
    """A log that says no more than the disk has room for."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


@contextmanager
def _log_to(run: Run) -> Iterator[None]:
    """Sends the log to the run's `log.txt`."""
    handler = _Log(run.log_file, encoding="utf-8")
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
def _signals_as_requests(ask_to_stop: Callable[[], None]) -> Iterator[None]:
    """Makes Ctrl-C and SIGTERM a request to stop; another one, a moment later, ends the process at
    once. A launcher of several processes passes on a signal that they have had already."""
    first = 0.0

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not first:
            first = time.monotonic()
            ask_to_stop()
        elif time.monotonic() - first > _SECONDS_OF_ONE_REQUEST:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
