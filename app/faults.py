"""What a person sees when something goes wrong: our own errors as they are, others by an id."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import secrets
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import gradio as gr

from trainer.errors import AtelierError

_log = logging.getLogger(__name__)
Handler = TypeVar("Handler", bound=Callable[..., Any])


def guarded(handler: Handler) -> Handler:
    """An event handler, or a generator of one, whose exceptions become messages on the page.

    The text of an error that we did not write could hold anything, so it goes to the log under an
    id, and the page shows the id.
    """

    @functools.wraps(handler)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _told(handler.__qualname__):
            return handler(*args, **kwargs)

    @functools.wraps(handler)
    def iterate(*args: Any, **kwargs: Any) -> Any:
        with _told(handler.__qualname__):
            yield from handler(*args, **kwargs)

    guard: Any = iterate if inspect.isgeneratorfunction(handler) else call
    return guard  # type: ignore[no-any-return]


@contextlib.contextmanager
def _told(where: str) -> Iterator[None]:
    try:
        yield
    except gr.Error:
        raise
    except AtelierError as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from error
    except Exception as error:
        id = secrets.token_hex(2)
        _log.exception("Fault %s in %s", id, where)
        raise gr.Error(
            f"Something went wrong that should not have. The server's log has it as id {id}.",
            duration=None,
            print_exception=False,
        ) from error
