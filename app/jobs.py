"""Which run trains next: the queue, and the trainer processes it starts, one at a time.

A trainer is a detached process that outlives the web app. After a restart the app knows what is
going on from the run directories alone; only the order of waiting runs is kept in the catalogue.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.catalogue import Catalogue, Waiting
from app.history import Histories
from trainer.errors import RunDirectoryError
from trainer.run import Request, Run, State

TRAINER = (sys.executable, "-m", "trainer")
_LOOK_EVERY_SECONDS = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Trainer:
    """A process that was started for a run which then had this many attempts behind it."""

    process: subprocess.Popen[bytes]
    attempt: int

    def alive(self) -> bool:
        return self.process.poll() is None


class Jobs:
    """Starts, stops and lists the runs in a folder. `trainer` is the command of the trainer."""

    def __init__(
        self,
        folder: Path,
        catalogue: Catalogue,
        histories: Histories,
        trainer: Sequence[str] = TRAINER,
    ) -> None:
        self.folder = folder
        self._catalogue = catalogue
        self._histories = histories
        self._trainer = tuple(trainer)
        self._started: dict[str, _Trainer] = {}
        self._stillborn: set[str] = set()
        self._one_at_a_time = threading.RLock()

    def ids(self) -> list[str]:
        """All runs, newest first."""
        found = []
        for path in self.folder.glob("*/settings.json"):
            with contextlib.suppress(FileNotFoundError):  # it may be deleted at this instant
                found.append((path.stat().st_mtime, path.parent.name))
        return [name for _, name in sorted(found, reverse=True)]

    def run(self, id: str) -> Run:
        """The run of that id; ids are looked up, never joined to a path.

        Raises:
            RunDirectoryError: if there is none.
        """
        if id not in self.ids():
            raise RunDirectoryError("There is no such run.", "It may have been deleted.")
        return Run(self.folder / id)

    def state(self, id: str) -> State:
        """What a run is doing; one whose process has only just been started counts as starting."""
        state = self._histories.of(Run(self.folder / id)).status.state
        if not state.alive and self._starting(id):
            return State.STARTING
        return state

    def waiting(self) -> list[str]:
        """The runs in the queue, next one first, without the one that a trainer has taken."""
        return [
            entry.run
            for entry in self._catalogue.queue()
            if self._attempt(entry.run) == entry.attempt and not self._starting(entry.run)
        ]

    def did_not_start(self, id: str) -> bool:
        """Whether the last trainer of this run ended before it said anything but in its log."""
        if id in self._stillborn:
            return True
        log = Run(self.folder / id).log_file
        begun_in_vain = log.exists() and log.stat().st_size > 0
        return begun_in_vain and self.state(id) is State.DRAFT and id not in self.waiting()

    def active(self) -> str | None:
        """The run that a trainer is working on, if any."""
        return next((id for id in self.ids() if self.state(id).alive), None)

    def submit(self, id: str) -> None:
        """Queues a run, to be started or resumed when no other is being trained."""
        run = self.run(id)
        state = self.state(id)
        if state is State.FINISHED:
            raise RunDirectoryError("This run is finished.", "Start a new one from its settings.")
        if state.alive:
            raise RunDirectoryError("This run is being trained already.", "Reload the page.")
        run.take("stop")  # left by a person who changed their mind before a trainer saw it
        self._stillborn.discard(id)
        self._catalogue.enqueue(Waiting(id, self._attempt(id)))
        self.advance()

    def advance(self) -> None:
        """Starts the next waiting run if no trainer is at work."""
        with self._one_at_a_time:
            known = set(self.ids())
            for entry in self._catalogue.queue():
                ours = self._started.get(entry.run)
                gone = ours is not None and ours.attempt == entry.attempt and not ours.alive()
                if entry.run not in known or self._attempt(entry.run) > entry.attempt:
                    self._catalogue.dequeue(entry.run)
                elif gone:  # and no attempt came of it
                    self._catalogue.dequeue(entry.run)
                    self._stillborn.add(entry.run)
                    _log.warning("The trainer of %s ended before it began.", entry.run)
            self._started = {id: it for id, it in self._started.items() if it.alive()}
            queue = self._catalogue.queue()
            if queue and self.active() is None:
                self._start(queue[0].run)

    def ask(self, id: str, wanted: Request) -> None:
        """Passes a request on to the trainer; a waiting run that is to stop leaves the queue."""
        run = self.run(id)
        if wanted == "stop" and self._catalogue.dequeue(id) and not self.state(id).alive:
            return
        if not self.state(id).alive:
            raise RunDirectoryError("This run is not being trained at the moment.")
        run.request(wanted)

    def kill(self, id: str) -> None:
        """Ends a trainer that does not answer; the run can be resumed from its last checkpoint."""
        run = self.run(id)
        status = self._histories.of(run).status
        if not status.state.alive or status.pid is None or not run.locked():
            raise RunDirectoryError("No trainer is at work on this run.")
        # Whoever holds the lock wrote the last `started` event, so the pid is the holder's.
        os.kill(status.pid, getattr(signal, "SIGKILL", signal.SIGTERM))

    def delete(self, id: str) -> None:
        """Removes a run with its checkpoints, samples and adapter."""
        with self._one_at_a_time:
            run = self.run(id)
            if self.state(id).alive:
                raise RunDirectoryError("This run is being trained.", "Stop it first.")
            self._catalogue.dequeue(id)
            self._catalogue.forget(f"run:{id}")
            shutil.rmtree(run.path)

    @contextlib.contextmanager
    def kept_going(self) -> Iterator[None]:
        """Advances the queue in the background for as long as the block lasts."""
        leaving = threading.Event()

        def look() -> None:
            while not leaving.wait(_LOOK_EVERY_SECONDS):
                try:
                    self.advance()
                except Exception:
                    _log.exception("The queue could not be advanced; trying again.")

        keeper = threading.Thread(target=look, name="queue", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            leaving.set()
            keeper.join()

    def _start(self, id: str) -> None:
        run = Run(self.folder / id)
        command = [*self._trainer, "resume", str(run.path)]
        with run.log_file.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        self._started[id] = _Trainer(process, self._attempt(id))
        _log.info("Started %s", " ".join(command))

    def _attempt(self, id: str) -> int:
        return self._histories.of(Run(self.folder / id)).status.attempt

    def _starting(self, id: str) -> bool:
        """Whether a trainer of this server is on its way to the run and has not said so there."""
        trainer = self._started.get(id)
        return trainer is not None and trainer.alive() and self._attempt(id) == trainer.attempt
