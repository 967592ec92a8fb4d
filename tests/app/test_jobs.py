"""The queue and the trainer processes it starts, with a fake trainer in real processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from app.catalogue import Catalogue
from app.history import Histories
from app.jobs import Jobs
from app.workshop import Workshop
from tests.app.fakes import TRAINER, new_run, until
from trainer.errors import RunDirectoryError
from trainer.run import Run, State

Start = Callable[..., str]


def test_a_submitted_run_is_trained_to_its_end(workshop: Workshop, start: Start) -> None:
    id = start()
    until(lambda: workshop.jobs.state(id) is State.FINISHED)
    assert Run(workshop.jobs.folder / id).adapter_file.exists()
    assert "training works" in Run(workshop.jobs.folder / id).log_file.read_text()
    assert workshop.jobs.active() is None


def test_one_run_is_trained_at_a_time(workshop: Workshop, start: Start) -> None:
    first, second, third = start("lasts"), start("lasts"), start()
    until(lambda: workshop.jobs.state(first) is State.RUNNING)
    assert workshop.jobs.waiting() == [second, third]
    workshop.jobs.ask(first, "stop")
    until(lambda: workshop.jobs.state(second) is State.RUNNING)
    assert workshop.jobs.state(first) is State.STOPPED
    workshop.jobs.ask(second, "stop")
    until(lambda: workshop.jobs.state(third) is State.FINISHED)


def test_a_waiting_run_that_is_stopped_leaves_the_queue(workshop: Workshop, start: Start) -> None:
    first, second = start("lasts"), start()
    until(lambda: workshop.jobs.state(first) is State.RUNNING)
    workshop.jobs.ask(second, "stop")
    assert workshop.jobs.waiting() == []
    assert workshop.jobs.state(second) is State.DRAFT


def test_a_stopped_run_goes_on_where_it_stopped(workshop: Workshop, start: Start) -> None:
    id = start("lasts")
    until(lambda: workshop.jobs.state(id) is State.RUNNING)
    workshop.jobs.ask(id, "stop")
    until(lambda: workshop.jobs.state(id) is State.STOPPED)
    run = Run(workshop.jobs.folder / id)
    stopped_at = workshop.histories.of(run).status.step
    workshop.jobs.submit(id)
    until(lambda: workshop.histories.of(run).status.attempt == 2)
    until(lambda: workshop.jobs.state(id) is State.RUNNING)
    assert workshop.histories.of(run).status.step >= stopped_at > 0


def test_a_killed_trainer_leaves_a_resumable_run(workshop: Workshop, start: Start) -> None:
    id = start("lasts")
    until(lambda: workshop.jobs.state(id) is State.RUNNING)
    workshop.jobs.kill(id)
    until(lambda: workshop.jobs.state(id) is State.INTERRUPTED)
    with pytest.raises(RunDirectoryError):
        workshop.jobs.kill(id)


def test_a_crash_is_told_from_a_failure(workshop: Workshop, start: Start) -> None:
    crashed = start("crashes")
    until(lambda: workshop.jobs.state(crashed) is State.INTERRUPTED)
    failed = start("fails")
    until(lambda: workshop.jobs.state(failed) is State.FAILED)
    status = workshop.histories.of(Run(workshop.jobs.folder / failed)).status
    assert "memory" in status.message
    assert "batch_size" in status.advice


def test_a_trainer_that_dies_before_it_begins_does_not_block_the_queue(
    workshop: Workshop, start: Start
) -> None:
    mute, next_one = start("mute"), start()
    until(lambda: workshop.jobs.state(next_one) is State.FINISHED)
    assert workshop.jobs.did_not_start(mute)
    assert not workshop.jobs.did_not_start(next_one)


def test_a_restarted_server_finds_the_run_that_went_on(tmp_path: Path) -> None:
    """The trainer outlives the server, is not started twice, and is not resumed once stopped."""
    catalogue = Catalogue(tmp_path / "catalogue.sqlite")
    runs = tmp_path / "runs"
    running, waiting = new_run(runs, "lasts"), new_run(runs)
    before = Jobs(runs, catalogue, Histories(), TRAINER)
    before.submit(running)
    before.submit(waiting)
    until(lambda: before.state(running) is State.RUNNING)

    after = Jobs(runs, Catalogue(catalogue.path), Histories(), TRAINER)
    after.advance()
    assert after.active() == running
    assert after.waiting() == [waiting]
    after.ask(running, "stop")
    until(lambda: Run(runs / running).status().state is State.STOPPED)

    much_later = Jobs(runs, Catalogue(catalogue.path), Histories(), TRAINER)
    much_later.advance()
    until(lambda: much_later.state(waiting) is State.FINISHED)
    much_later.advance()
    assert much_later.state(running) is State.STOPPED
    assert much_later.waiting() == []


def test_a_queue_entry_is_dropped_if_its_run_was_taken_while_no_server_looked(
    tmp_path: Path,
) -> None:
    catalogue = Catalogue(tmp_path / "catalogue.sqlite")
    runs = tmp_path / "runs"
    id = new_run(runs, "fails")
    Jobs(runs, catalogue, Histories(), TRAINER).submit(id)
    until(lambda: Run(runs / id).status().state is State.FAILED)

    after = Jobs(runs, Catalogue(catalogue.path), Histories(), TRAINER)
    after.advance()
    assert after.waiting() == []
    assert Run(runs / id).status().attempt == 1


def test_a_stop_left_over_does_not_stop_the_next_attempt(workshop: Workshop) -> None:
    id = new_run(workshop.jobs.folder)
    Run(workshop.jobs.folder / id).request("stop")
    workshop.jobs.submit(id)
    until(lambda: workshop.jobs.state(id) is State.FINISHED)


def test_runs_are_looked_up_never_joined(workshop: Workshop, start: Start) -> None:
    start()
    for wrong in ("..", "../runs", "", "/etc", "nothing"):
        with pytest.raises(RunDirectoryError):
            workshop.jobs.run(wrong)


def test_a_run_is_deleted_with_its_directory_but_not_while_it_is_trained(
    workshop: Workshop, start: Start
) -> None:
    id = start("lasts")
    until(lambda: workshop.jobs.state(id) is State.RUNNING)
    with pytest.raises(RunDirectoryError):
        workshop.jobs.delete(id)
    workshop.jobs.ask(id, "stop")
    until(lambda: workshop.jobs.state(id) is State.STOPPED)
    workshop.jobs.delete(id)
    assert workshop.jobs.ids() == []


def test_a_trainer_does_not_hear_the_signal_that_ends_the_server(
    workshop: Workshop, start: Start
) -> None:
    id = start("lasts")
    until(lambda: workshop.jobs.state(id) is State.RUNNING)
    pid = workshop.histories.of(Run(workshop.jobs.folder / id)).status.pid
    assert pid is not None
    assert os.getpgid(pid) != os.getpgid(0)
    os.kill(pid, signal.SIGTERM)
    until(lambda: workshop.jobs.state(id) is State.INTERRUPTED)
