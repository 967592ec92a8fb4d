"""The errors a person can meet, each saying what failed, where, and what to do about it.

AtelierError
├── UserError                 a mistake in what was asked: exit code 2
│   ├── SettingsError         one or more settings are wrong; all are reported together
│   ├── DatasetError          a dataset folder, image, caption or archive that cannot be used
│   ├── BaseModelError        a base that is missing, refused or of another kind
│   ├── AdapterError          an adapter file that is broken, or made for another base
│   └── RunDirectoryError     a run directory that is taken, finished or not writable
└── RunFailed                 a failure while working: exit code 1
    ├── OutOfMemory
    ├── NonFinite             a loss or gradient that is NaN or infinite
    └── ProcessLost           another of the processes that share a run is gone
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class AtelierError(Exception):
    """Base of every error whose message is meant for the person at the keyboard.

    `what` is one sentence that names the thing and where it is; `advice` says what to do.
    """

    exit_code = 1

    def __init__(self, what: str, advice: str | None = None) -> None:
        self.what = what
        self.advice = advice
        super().__init__(what if advice is None else f"{what} {advice}")


class UserError(AtelierError):
    """A mistake in what was asked; nothing has been changed."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One wrong setting: its dotted name (`optimizer.learning_rate`) and what is wrong with it."""

    name: str
    message: str

    def __str__(self) -> str:
        return f"{self.name}: {self.message}" if self.name else self.message


class SettingsError(UserError):
    """All problems found in a settings tree, each under its dotted name."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(str(problem) for problem in problems))


class DatasetError(UserError):
    """A dataset folder, image, caption or archive that cannot be used."""


class BaseModelError(UserError):
    """A base model that is missing, refused or of another kind than asked for."""


class AdapterError(UserError):
    """An adapter that is broken, or made for another base."""


class RunDirectoryError(UserError):
    """A run directory that is taken, already finished, or not writable."""


class RunFailed(AtelierError):
    """A failure while training or rendering."""


class OutOfMemory(RunFailed):
    """The device or the machine has no memory left for the work asked of it."""


class NonFinite(RunFailed):
    """A loss, gradient or weight became NaN or infinite."""


class ProcessLost(RunFailed):
    """Another of the processes that share a run has ended, so the run is interrupted."""


# How the libraries below say it: the allocators of CPU and GPU, C++, cuBLAS and cuDNN, and oneDNN,
# which has no other words for it.
_NO_MEMORY = (
    "out of memory",
    "allocate memory",
    "bad_alloc",
    "alloc_failed",
    "could not create a primitive",
    "could not create a memory",
)


def means_no_memory(error: BaseException) -> bool:
    """Whether an error, of whatever class, means that memory ran out."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY)
