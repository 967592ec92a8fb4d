"""Images on demand: the resident preview worker, and a cache of what it has drawn.

The worker is a process that keeps a base loaded. It is started when the first image is wanted, and
ends when its input does, so it cannot outlive the web app.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from trainer.errors import RunFailed, UserError
from trainer.preview.request import (
    ANSWER,
    Answer,
    Cancel,
    Cancelled,
    Loading,
    Progress,
    Refused,
    Render,
    Rendered,
)

WORKER = (sys.executable, "-m", "trainer", "worker")
_OUTCOMES = (Rendered, Cancelled, Refused)
_REMEMBERED = 100  # ids of requests that were given up
_KEPT = 1000  # drawings in the cache after a restart; a strip is one


class Worker:
    """The preview worker: one request at a time, started when needed."""

    def __init__(self, log: Path, command: Sequence[str] = WORKER) -> None:
        self._log = log
        self._command = tuple(command)
        self._process: subprocess.Popen[str] | None = None
        self._one_at_a_time = threading.Lock()
        self._one_writer = threading.Lock()
        self._given_up: deque[str] = deque(maxlen=_REMEMBERED)

    def give_up(self, id: str) -> None:
        """Gives up a request that is being done, or that is yet to be asked; its outcome tells
        whether that came in time."""
        self._given_up.append(id)
        process = self._process
        if process is not None and process.poll() is None:
            self._tell(process, Cancel(id=id))

    def ask(self, request: Render) -> Iterator[Answer]:
        """Everything that the worker says about a request, the outcome last.

        Leaving the iteration early cancels the request.

        Raises:
            RunFailed: if the worker ends without an outcome.
        """
        with self._one_at_a_time:
            if request.id in self._given_up:
                yield Cancelled(id=request.id)
                return
            process = self._running()
            self._tell(process, request)
            if request.id in self._given_up:  # by now, and the worker may have been told too early
                self._tell(process, Cancel(id=request.id))
            answers = self._answers(process, request.id)
            for answer in answers:
                try:
                    yield answer
                except GeneratorExit:
                    self._tell(process, Cancel(id=request.id))
                    for _ in answers:  # so that nobody writes to the folder any more
                        continue
                    raise
                if isinstance(answer, _OUTCOMES):
                    return
            self._process = None
            process.kill()  # if it closed its output but lives on
            process.wait()
        raise RunFailed(f"The preview worker ended unexpectedly. {self._last_words()}")

    def close(self) -> None:
        """Ends the worker by closing its input."""
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:  # in the middle of loading a base
            process.kill()
            process.wait()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    encoding="utf-8",
                )
        return self._process

    def _tell(self, process: subprocess.Popen[str], message: Render | Cancel) -> None:
        assert process.stdin is not None
        try:
            with self._one_writer:
                process.stdin.write(message.model_dump_json() + "\n")
                process.stdin.flush()
        except OSError as error:
            raise RunFailed(f"The preview worker has gone. {self._last_words()}") from error

    def _answers(self, process: subprocess.Popen[str], id: str) -> Iterator[Answer]:
        """What the worker says about a request, up to its outcome or the worker's end."""
        assert process.stdout is not None
        for line in process.stdout:
            try:
                answer = ANSWER.validate_json(line)
            except ValidationError:
                continue  # a library that prints to standard output
            if answer.id == id:
                yield answer
                if isinstance(answer, _OUTCOMES):
                    return

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "It left no message."


class Previews:
    """Drawings by what was asked for: the same request is drawn once."""

    def __init__(self, folder: Path, worker: Worker) -> None:
        self.folder = folder
        self._worker = worker
        self._tidy()

    def draw(self, wanted: Render) -> Iterator[Loading | Progress | Cancelled | Rendered]:
        """Progress, then the images; those drawn before come at once.

        Raises:
            RunFailed: with the worker's reason, if it refuses or fails.
        """
        key = content_key(wanted)
        home = self.folder / key
        if done := _drawn(home, len(wanted.strip)):
            os.utime(home)  # the latest that somebody looked at
            yield Rendered(id=wanted.id, files=done, seconds=0)
            return
        draft = self.folder / f".{secrets.token_hex(8)}"
        try:
            for answer in self._worker.ask(wanted.model_copy(update={"folder": draft})):
                match answer:
                    case Refused():
                        raise RunFailed(answer.message, answer.advice or None)
                    case Rendered():
                        (draft / "request.json").write_text(wanted.model_dump_json(indent=2))
                        shutil.rmtree(home, ignore_errors=True)
                        draft.rename(home)
                        files = tuple(home / file.name for file in answer.files)
                        yield answer.model_copy(update={"files": files})
                    case _:
                        yield answer
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def give_up(self, id: str) -> None:
        """Stops the drawing of that id between two steps, if it is going on or waits."""
        if id:
            self._worker.give_up(id)

    def latest(self, count: int) -> list[tuple[Render, tuple[Path, ...]]]:
        """The newest drawings with their files."""
        homes = [path for path in self.folder.iterdir() if not path.name.startswith(".")]
        homes.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        found = []
        for home in homes:
            with contextlib.suppress(UserError):
                found.append(self.drawn(home.name))
            if len(found) == count:
                break
        return found

    def drawn(self, key: str) -> tuple[Render, tuple[Path, ...]]:
        """The drawing of that key: what was asked for, and its files.

        Raises:
            UserError: if there is none, or it was made by another version of this program.
        """
        known = key in (path.name for path in self.folder.iterdir())
        try:
            wanted = self.request(key) if known else None
        except (OSError, ValidationError):
            wanted = None
        files = _drawn(self.folder / key, len(wanted.strip)) if wanted else None
        if wanted is None or files is None:
            raise UserError("There is no such drawing any more.", "Draw it again.")
        return wanted, files

    def request(self, key: str) -> Render:
        """What was asked for to get the drawing of that key, which must be in the cache."""
        return Render.model_validate_json((self.folder / key / "request.json").read_text())

    def _tidy(self) -> None:
        """Removes drafts of a killed server, and drawings beyond the newest."""
        for draft in self.folder.glob(".*"):
            shutil.rmtree(draft, ignore_errors=True)
        drawings = sorted(self.folder.iterdir(), key=lambda path: path.stat().st_mtime)
        for old in drawings[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)


def content_key(wanted: Render) -> str:
    """A name for what the images depend on, adapters by their files' state."""
    tree = wanted.model_dump(mode="json", exclude={"id", "folder", "type"})
    for strength in tree["adapters"]:
        status = Path(strength["file"]).stat()
        strength["file"] = [strength["file"], status.st_mtime_ns, status.st_size]
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:32]


def _drawn(home: Path, count: int) -> tuple[Path, ...] | None:
    files = tuple(home / f"{number:02}.png" for number in range(count))
    return files if all(file.exists() for file in files) else None
