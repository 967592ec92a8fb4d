"""Operations: one at a time, cancellable, honest about how they end, and gone with the server."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.operations import MOST_WAITING, Operation, Operations, Outcome, Stage, Task
from tests.app.fakes import until
from trainer.errors import UserError

_SAY = "import sys; print(sys.argv[1])"
_WAIT = "import sys, threading; open(sys.argv[1], 'w').close(); threading.Event().wait()"


@pytest.fixture
def operations(tmp_path: Path) -> Iterator[Operations]:
    opened = Operations(tmp_path / "scratch", (sys.executable, "-c"))
    yield opened
    opened.close()


def task(title: str, script: str, *arguments: str, names: dict[Path, str] | None = None) -> Task:
    def finish(scratch: Path, result: Any) -> Outcome:
        assert scratch.is_dir()
        return Outcome(f"got {result}", "/there")

    return Task(title, lambda scratch: [script, *arguments], finish, names or {})


def ended(operations: Operations, id: str) -> Operation:
    def found() -> Operation:
        return next(it for it in operations.listing() if it.id == id)

    until(lambda: found().stage.over)
    return found()


def test_the_result_of_a_command_is_taken_and_its_folder_removed(
    operations: Operations, tmp_path: Path
) -> None:
    done = ended(operations, operations.submit(task("count", _SAY, "[1, 2]")))
    assert (done.stage, done.outcome) == (Stage.DONE, Outcome("got [1, 2]", "/there"))
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_refusal_is_told_in_its_own_words_with_names_for_paths(operations: Operations) -> None:
    script = "import sys; sys.exit('noise\\natelier: /data/x.safetensors is broken. Mend it.')"
    asked = task("mend", script, names={Path("/data/x.safetensors"): "my adapter"})
    failed = ended(operations, operations.submit(asked))
    assert failed.stage is Stage.FAILED
    assert failed.outcome.message == "my adapter is broken. Mend it."


def test_a_crash_and_an_answer_that_is_none_are_failures(operations: Operations) -> None:
    crashed = ended(operations, operations.submit(task("crash", "raise SystemExit(3)")))
    assert (crashed.stage, crashed.outcome.message) == (Stage.FAILED, "It ended without a word.")
    babbled = ended(operations, operations.submit(task("babble", _SAY, "hello")))
    assert babbled.stage is Stage.FAILED
    assert babbled.id in babbled.outcome.message


def test_what_works_and_what_waits_can_be_cancelled(operations: Operations, tmp_path: Path) -> None:
    working = operations.submit(task("work", _WAIT, str(tmp_path / "began")))
    waiting = operations.submit(task("wait", _SAY, "1"))
    until((tmp_path / "began").exists)
    assert [it.stage for it in operations.listing()] == [Stage.WAITING, Stage.WORKING]
    operations.cancel(waiting)
    operations.cancel(working)
    assert ended(operations, working).stage is Stage.CANCELLED
    last = ended(operations, operations.submit(task("last", _SAY, "7")))
    assert last.outcome.message == "got 7"
    assert ended(operations, waiting).stage is Stage.CANCELLED
    operations.dismiss(waiting)
    assert waiting not in [it.id for it in operations.listing()]


def test_the_same_task_is_not_queued_twice_nor_too_many(
    operations: Operations, tmp_path: Path
) -> None:
    first = operations.submit(task("work", _WAIT, str(tmp_path / "began")))
    assert operations.submit(task("work", _SAY, "1")) == first
    for number in range(MOST_WAITING - 1):
        operations.submit(task(f"number {number}", _SAY, "1"))
    with pytest.raises(UserError, match="waiting already"):
        operations.submit(task("one more", _SAY, "1"))


def test_closing_ends_the_process_at_work(tmp_path: Path) -> None:
    operations = Operations(tmp_path / "scratch", (sys.executable, "-c"))
    operations.submit(task("work", _WAIT, str(tmp_path / "began")))
    until((tmp_path / "began").exists)
    operations.close()
    assert operations.listing()[0].stage is Stage.CANCELLED
