"""Long operations on adapter files: the trainer's command line in a process of its own, one at a
time, so that no page waits for them and none of them outlives the server.

What becomes of an operation is kept in memory alone. A finished one has left its result in the
library or among the reports; one that was cut short has left nothing.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from trainer.errors import AtelierError, UserError

COMMAND = (sys.executable, "-m", "trainer")
MOST_WAITING = 20
_REMEMBERED = 30
_log = logging.getLogger(__name__)


class Stage(StrEnum):
    """Where an operation is."""

    WAITING = "waiting"
    WORKING = "working"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def over(self) -> bool:
        return self not in (Stage.WAITING, Stage.WORKING)


@dataclass(frozen=True)
class Outcome:
    """What a person is told of a finished operation, and the address of what it made."""

    message: str
    address: str = ""


@dataclass(frozen=True)
class Operation:
    """An operation as the pages show it."""

    id: str
    title: str
    stage: Stage = Stage.WAITING
    outcome: Outcome = Outcome("")
    began: float | None = None

    @property
    def seconds(self) -> float:
        """How long it has been working."""
        return time.monotonic() - self.began if self.began else 0.0


@dataclass(frozen=True)
class Task:
    """What is to be done.

    Attributes:
        arguments: the command line, given an empty folder that is removed afterwards.
        finish: called with that folder and the JSON that the command printed.
        names: what to call files in messages, instead of their paths.
    """

    title: str
    arguments: Callable[[Path], list[str]]
    finish: Callable[[Path, Any], Outcome]
    names: Mapping[Path, str] = field(default_factory=dict)


class Operations:
    """Does tasks one after another. `folder` is scratch space, emptied at the start."""

    def __init__(self, folder: Path, command: Sequence[str] = COMMAND) -> None:
        self._folder = folder
        self._command = tuple(command)
        self._known: dict[str, Operation] = {}
        self._tasks: queue.Queue[tuple[str, Task] | None] = queue.Queue()
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._worker = threading.Thread(target=self._work, name="operations", daemon=True)
        self._worker.start()

    def listing(self) -> list[Operation]:
        """All operations that have not been dismissed, newest first."""
        with self._lock:
            return list(self._known.values())[::-1]

    def submit(self, task: Task) -> str:
        """Queues a task and returns the id of its operation; one that waits or works already under
        the same title is not queued again.

        Raises:
            UserError: if too many are waiting.
        """
        with self._lock:
            going = [it for it in self._known.values() if not it.stage.over]
            same = next((it.id for it in going if it.title == task.title), None)
            if same:
                return same
            if len(going) >= MOST_WAITING:
                raise UserError(f"{MOST_WAITING} operations are waiting already.", "Cancel some.")
            operation = Operation(secrets.token_hex(6), task.title)
            self._known[operation.id] = operation
            for old in list(self._known)[:-_REMEMBERED]:
                if self._known[old].stage.over:
                    del self._known[old]
        self._tasks.put((operation.id, task))
        return operation.id

    def cancel(self, id: str) -> None:
        """Gives up an operation that waits or works; one that is over stays as it is."""
        with self._lock:
            operation = self._known.get(id)
            if operation is None or operation.stage.over:
                return
            if operation.stage is Stage.WORKING and self._process is not None:
                self._process.kill()
            self._known[id] = replace(operation, stage=Stage.CANCELLED)

    def dismiss(self, id: str) -> None:
        """Forgets an operation that is over."""
        with self._lock:
            if id in self._known and self._known[id].stage.over:
                del self._known[id]

    def close(self) -> None:
        """Gives up everything and waits until the process at work is gone."""
        for operation in self.listing():
            self.cancel(operation.id)
        self._tasks.put(None)
        self._worker.join()

    def _work(self) -> None:
        while (given := self._tasks.get()) is not None:
            id, task = given
            scratch = self._folder / id
            try:
                scratch.mkdir()
                outcome, stage = self._outcome(id, task, scratch), Stage.DONE
            except AtelierError as error:
                outcome, stage = Outcome(_named(str(error), task, scratch)), Stage.FAILED
            except Exception:
                _log.exception("Fault %s in an operation", id)
                outcome = Outcome(f"It went wrong; the server's log has it as id {id}.")
                stage = Stage.FAILED
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            self._conclude(id, stage, outcome)

    def _conclude(self, id: str, stage: Stage, outcome: Outcome) -> None:
        with self._lock:
            operation = self._known.get(id)
            if operation is not None and not operation.stage.over:
                self._known[id] = replace(operation, stage=stage, outcome=outcome)

    def _outcome(self, id: str, task: Task, scratch: Path) -> Outcome:
        process = self._begun(id, [*self._command, *task.arguments(scratch)])
        if process is None:
            return Outcome("")
        printed, complaints = process.communicate()
        with self._lock:
            self._process = None
            known = self._known.get(id)  # not there any more where it was cancelled and dismissed
            if known is None or known.stage is Stage.CANCELLED:
                return Outcome("")
        if process.returncode:
            raise UserError(_complaint(complaints))
        return task.finish(scratch, json.loads(printed))

    def _begun(self, id: str, command: list[str]) -> subprocess.Popen[str] | None:
        """The process of an operation, unless it has been cancelled before its turn."""
        with self._lock:
            operation = self._known.get(id)
            if operation is None or operation.stage.over:
                return None
            self._known[id] = replace(operation, stage=Stage.WORKING, began=time.monotonic())
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
            )
            return self._process


def _complaint(printed: str) -> str:
    """The sentence in which a command said what is wrong, without the program's name."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    told = [line.removeprefix("atelier: ") for line in lines if line.startswith("atelier: ")]
    if told:
        return " ".join(told)
    _log.error("An operation failed: %s", printed[-4000:])
    return f"It failed: {lines[-1][:300]}" if lines else "It ended without a word."


def _named(text: str, task: Task, scratch: Path) -> str:
    """The text with files called by their names."""
    for path, name in task.names.items():
        text = text.replace(str(path), name)
    return text.replace(f"{scratch}{os.sep}", "")
