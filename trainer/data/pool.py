"""Doing the same to many files, a few at a time: decoders and disks let go of Python's lock."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_WORKERS = min(4, os.cpu_count() or 1)
_AHEAD = 4 * _WORKERS


def in_order(function: Callable[[T], R], items: Iterable[T], ahead: int = _AHEAD) -> Iterator[R]:
    """`function` of each item, in the order of the items, computed at most `ahead` items ahead.

    An exception is raised where its result would have come; what has not begun is then dropped.
    """
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(_WORKERS) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class Ahead(Generic[R]):
    """`function` of one number after another, the next one being worked out in the background.

    `function` must be pure, and fit to run on another thread: then nobody can tell the difference.
    Which number is next is guessed from the last two.
    """

    def __init__(self, function: Callable[[int], R]) -> None:
        self._function = function
        self._pool = ThreadPoolExecutor(1)
        self._last: int | None = None
        self._coming: tuple[int, Future[R]] | None = None

    def __call__(self, number: int) -> R:
        if self._coming is not None and self._coming[0] == number:
            result = self._coming[1].result()
        else:
            result = self._function(number)
        following = number + (1 if self._last is None else number - self._last)
        self._last, self._coming = number, None
        if following >= 0:
            self._coming = following, self._pool.submit(self._function, following)
        return result
