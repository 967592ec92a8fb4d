"""The run directory: whole files, one holder, and a status that cannot lie."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer import events
from trainer.errors import RunDirectoryError
from trainer.run import Run, State, derive_status
from trainer.settings import Settings

HOLD = textwrap.dedent(
    """
    import os, sys, time
    from pathlib import Path
    from trainer import events
    from trainer.run import Run
    run = Run(Path(sys.argv[1]))
    with run.lock():
        run.append(events.Started(attempt=1, pid=os.getpid()))
        print("held", flush=True)
        time.sleep(600)
    """
)
ENDINGS = {
    events.Stopped: State.STOPPED,
    events.Finished: State.FINISHED,
    events.Failed: State.FAILED,
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    run.create(Settings())
    return run


def _hold(run: Run) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_create_writes_settings_that_read_back(run: Run) -> None:
    assert run.settings() == Settings()
    assert run.status().state is State.DRAFT


def test_a_directory_in_use_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="already holds a run, which is draft"):
        run.create(Settings())
    with pytest.raises(RunDirectoryError, match="not an empty folder"):
        Run(tmp_path).create(Settings())
    (tmp_path / "file").touch()
    with pytest.raises(RunDirectoryError, match="not an empty folder"):
        Run(tmp_path / "file").create(Settings())
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        Run(tmp_path / "file" / "below").create(Settings())
    with pytest.raises(RunDirectoryError, match=r"no settings\.json"):
        Run(tmp_path / "nowhere").settings()


def test_a_killed_holder_leaves_no_lie(run: Run) -> None:
    holder = _hold(run)
    assert run.locked()
    assert run.status().state is State.STARTING
    with pytest.raises(RunDirectoryError, match=f"process {holder.pid}"), run.lock():
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert not run.locked()
    status = run.status()
    assert (status.state, status.pid) == (State.INTERRUPTED, holder.pid)
    with run.lock():
        assert run.locked()


def test_a_trainer_that_begins_while_one_looks_has_not_been_interrupted(run: Run) -> None:
    with contextlib.ExitStack() as trainer:

        def read() -> list[events.AnyEvent]:
            if not run.locked():
                trainer.enter_context(run.lock())
                run.append(events.Started(attempt=1, pid=1))
            return run.read_events()[0]

        assert run.status_by(read).state is State.STARTING
    assert run.status().state is State.INTERRUPTED


def test_looking_at_the_status_does_not_disturb_the_holder(run: Run) -> None:
    with run.lock():
        run.append(events.Started(attempt=1, pid=1))
        for _ in range(50):
            assert run.status().state is State.STARTING
    assert not run.locked()


def test_those_who_look_mistake_neither_one_another_nor_stand_in_the_way(run: Run) -> None:
    run.append(events.Started(attempt=1, pid=1))
    (run.path / "lock").touch()
    done = threading.Event()
    seen: set[bool] = set()

    def look() -> None:
        while not done.is_set():
            seen.add(run.locked())

    with ThreadPoolExecutor(4) as lookers:
        looking = [lookers.submit(look) for _ in range(4)]
        states = {run.status().state for _ in range(200)}
        assert states == {State.INTERRUPTED}
        assert seen == {False}
        for _ in range(20):
            with run.lock():
                assert run.locked()
        done.set()
        for one in looking:
            one.result()


def test_requests_are_taken_once(run: Run) -> None:
    run.request("stop")
    run.request("stop")
    assert run.requested() == {"stop"}
    assert run.take("stop")
    assert not run.take("stop")
    assert run.requested() == frozenset()


event = st.one_of(
    st.builds(events.Started, attempt=st.integers(1, 9), pid=st.integers(1, 9)),
    st.builds(events.Preparing, stage=st.text(max_size=9)),
    st.builds(events.Step, step=st.integers(0, 99), loss=st.floats(0, 9),
              learning_rate=st.just(1e-4), steps_per_second=st.just(1.0), eta_seconds=st.just(9.0)),
    st.builds(events.Validated, step=st.integers(0, 99), training=st.floats(0, 9),
              base_training=st.floats(0, 9)),
    st.builds(events.Notice, message=st.text(max_size=30)),
    st.builds(events.Stopping, step=st.just(3)),
    st.builds(events.Stopped, step=st.just(4)),
    st.builds(events.Finished, step=st.just(5), adapter=st.just("adapter.safetensors")),
    st.builds(events.Failed, step=st.just(6), message=st.text(max_size=30)),
)  # fmt: skip
histories = st.lists(event, max_size=12)


@given(histories, st.booleans(), st.booleans())
def test_the_status_follows_the_rules(
    history: list[events.AnyEvent], locked: bool, stop_requested: bool
) -> None:
    status = derive_status(history, locked, stop_requested)
    begun = [event for event in history if not isinstance(event, events.Notice)]
    last = type(begun[-1]) if begun else None
    if status.state.alive:
        assert locked  # nothing is said to be running that is not
    if last in ENDINGS:
        assert status.state is ENDINGS[last]
    if any(isinstance(event, events.Started) for event in history) and not locked:
        assert status.state in {State.INTERRUPTED, *ENDINGS.values()}


@given(histories, st.floats(0, 1))
def test_a_log_cut_anywhere_reads_as_a_prefix_and_can_be_gone_on_with(
    tmp_path_factory: pytest.TempPathFactory, history: list[events.AnyEvent], share: float
) -> None:
    file = tmp_path_factory.mktemp("log") / "events.jsonl"
    for one in history:
        events.append(file, one)
    content = file.read_bytes() if history else b""
    cut = round(share * len(content))
    file.write_bytes(content[:cut])
    before, _ = events.read(file)
    assert before == history[: content[:cut].count(b"\n")]
    events.append(file, events.Notice(message="after"))
    after, end = events.read(file)
    # The torn line is closed; if only its line end was lost, it is whole after all.
    assert after[:-1] in (before, history[: len(before) + 1])
    assert isinstance(after[-1], events.Notice)
    assert end == file.stat().st_size


def test_reading_goes_on_where_it_ended(run: Run) -> None:
    seen: list[events.AnyEvent] = []
    offset = 0
    for number in range(5):
        run.append(events.Notice(message=str(number)))
        with run.events_file.open("ab") as file:
            file.write(b'{"type": "notice", "mess')  # a line being written
        new, offset = run.read_events(offset)
        seen += new
        content = run.events_file.read_bytes()
        run.events_file.write_bytes(content[: content.rindex(b"\n") + 1])
    assert [event.message for event in seen if isinstance(event, events.Notice)] == list("01234")


def test_events_of_a_newer_version_are_skipped(run: Run) -> None:
    lines = [
        {"type": "levitated", "time": 1.0},
        {"type": "stopped", "time": 2.0, "step": 3, "x": 1},
    ]
    run.events_file.write_text("".join(json.dumps(line) + "\n" for line in lines) + "nonsense\n")
    found, _ = run.read_events()
    assert [type(event) for event in found] == [events.Stopped]


@pytest.mark.parametrize(
    "last",
    [
        events.Stopped(step=1),
        events.Finished(step=1, adapter="a"),
        events.Failed(step=1, message=""),
    ],
    ids=lambda event: event.type,
)
def test_nothing_is_set_aside_any_more_when_the_last_word_is_said(
    tmp_path: Path, last: events.Event
) -> None:
    run = Run(tmp_path)
    run.reserve()
    run.append(events.Notice(message="still at work"))
    assert list(tmp_path.glob("reserved*"))
    run.append(last)
    assert not list(tmp_path.glob("reserved*"))
