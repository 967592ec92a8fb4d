"""A resident process that draws: the base is loaded once, then images take only their steps.

Requests come as JSON lines on standard input and answers go out the same way (`request.py`). The
process ends when its input does, so it never outlives the web app. Bases other than the last one
are let go.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from pydantic import ValidationError

from trainer.errors import AtelierError
from trainer.preview.request import (
    REQUEST,
    Answer,
    Cancel,
    Cancelled,
    Drawing,
    Loading,
    Progress,
    Refused,
    Render,
    Rendered,
)

if TYPE_CHECKING:
    from trainer.preview.session import Session

log = logging.getLogger("atelier")


class Worker:
    """Answers requests one after another; a cancel overtakes the queue."""

    def __init__(self, say: Callable[[Answer], None]) -> None:
        self._say = say
        self._session: Session | None = None
        self._base: str | None = None
        self._given_up: set[str] = set()

    def cancel(self, id: str) -> None:
        """Gives up a request, now or when its turn comes."""
        self._given_up.add(id)

    def answer(self, wanted: Render) -> None:
        """Does a request, or says why it cannot be done."""
        try:
            self._render(wanted)
        except AtelierError as error:
            self._say(Refused(id=wanted.id, message=error.what, advice=error.advice or ""))
        except Exception as error:
            log.exception("request %s failed", wanted.id)
            message = f"Drawing failed: {type(error).__name__}: {error}"
            self._say(Refused(id=wanted.id, message=message, advice="Try a smaller image."))
        finally:
            self._given_up.discard(wanted.id)

    def _render(self, wanted: Render) -> None:
        from trainer.preview.grid import save_png
        from trainer.preview.recipe import recipe_of
        from trainer.preview.render import Cancelled as GivenUp

        began = time.monotonic()
        session = self._session_for(wanted)
        try:
            images = session.draw(
                wanted,
                lambda done, total: self._say(Progress(id=wanted.id, done=done, total=total)),
                lambda: wanted.id in self._given_up,
            )
        except GivenUp:
            self._say(Cancelled(id=wanted.id))
            return
        wanted.folder.mkdir(parents=True, exist_ok=True)
        files = tuple(wanted.folder / f"{index:02d}.png" for index in range(len(images)))
        drawing = Drawing(**{name: getattr(wanted, name) for name in Drawing.model_fields})
        for index, (image, file) in enumerate(zip(images, files, strict=True)):
            texts = {} if wanted.private else recipe_of([drawing], index).texts(*image.size)
            save_png(image, file, texts)
        self._say(Rendered(id=wanted.id, files=files, seconds=time.monotonic() - began))

    def _session_for(self, wanted: Render) -> Session:
        if self._session is None or self._base != wanted.base:
            self._say(Loading(id=wanted.id, base=wanted.base))
            from trainer.preview.session import Session
            from trainer.settings import Base

            self._session = None  # two bases may not fit side by side
            self._session, self._base = Session(Base(model=wanted.base)), wanted.base
        return self._session


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answers requests until there are no more."""
    lock = threading.Lock()

    def say(answer: Answer) -> None:
        with lock:
            answers.write(answer.model_dump_json() + "\n")
            answers.flush()

    worker = Worker(say)
    waiting: queue.Queue[Render | None] = queue.Queue()

    def listen() -> None:
        for line in requests:
            try:
                request = REQUEST.validate_json(line)
            except ValidationError as error:
                say(Refused(id="", message=f"Not a request: {error.errors()[0]['msg']}"))
                continue
            if isinstance(request, Cancel):
                worker.cancel(request.id)
            else:
                waiting.put(request)
        waiting.put(None)

    threading.Thread(target=listen, daemon=True).start()
    while (request := waiting.get()) is not None:
        worker.answer(request)


def main() -> None:
    """Serves standard input and output; whatever else is printed goes to standard error."""
    answers, sys.stdout = sys.stdout, sys.stderr
    serve(sys.stdin, answers)
