"""Histories: read as they grow, rewound by a new attempt."""

from __future__ import annotations

from pathlib import Path

from app.history import Histories
from trainer import events
from trainer.run import Run, State, derive_status
from trainer.settings import Settings


def step(number: int, loss: float = 0.5) -> events.Step:
    return events.Step(
        step=number, loss=loss, learning_rate=1e-4, steps_per_second=2, eta_seconds=9
    )


def begun(folder: Path, last: int) -> Run:
    run = Run(folder / "run")
    run.create(Settings())
    run.append(events.Started(attempt=1, pid=1))
    run.append(
        events.Ready(device="cpu", precision="fp32", steps=100, images=5, held_out=1,
                     trained_parameters=1, base_parameters=1, file_bytes=1)
    )  # fmt: skip
    for number in range(1, last + 1):
        run.append(step(number))
    return run


def test_only_what_is_new_is_read_and_the_status_is_that_of_the_run(tmp_path: Path) -> None:
    run = begun(tmp_path, 3)
    histories = Histories()
    assert [x for x, _ in histories.of(run).losses] == [1, 2, 3]
    run.append(step(4))
    history = histories.of(run)
    assert [x for x, _ in history.losses] == [1, 2, 3, 4]
    assert history.status == run.status()
    assert history.status.state is State.INTERRUPTED


def test_a_torn_last_line_waits_for_its_end(tmp_path: Path) -> None:
    run = begun(tmp_path, 1)
    line = step(2).model_dump_json().encode() + b"\n"
    with run.events_file.open("ab") as file:
        file.write(line[:20])
        file.flush()
        histories = Histories()
        assert len(histories.of(run).losses) == 1
        file.write(line[20:])
    assert len(histories.of(run).losses) == 2


def test_a_new_attempt_takes_back_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    run = begun(tmp_path, 10)
    run.append(events.Sampled(step=5, files=("a",), prompts=("p",)))
    run.append(events.Sampled(step=9, files=("b",), prompts=("p",)))
    run.append(events.Started(attempt=2, pid=2, from_step=5))
    run.append(step(6, loss=0.1))
    history = Histories().of(run)
    assert [x for x, _ in history.losses] == [1, 2, 3, 4, 5, 6]
    assert [sampled.step for sampled in history.samples] == [5]
    assert history.status.attempt == 2
    assert history.status.steps == 100


def test_a_run_that_takes_over_a_name_is_read_from_its_beginning(tmp_path: Path) -> None:
    run = begun(tmp_path, 10)
    histories = Histories()
    histories.of(run)
    run.events_file.unlink()
    assert histories.of(run).losses == ()
    run.append(events.Started(attempt=1, pid=1))
    assert histories.of(run).status.attempt == 1


def test_leaving_out_steps_does_not_change_the_status(tmp_path: Path) -> None:
    run = begun(tmp_path, 5)
    run.append(events.Notice(message="one image is small"))
    run.append(step(6))
    run.append(events.Failed(step=6, message="no", advice="yes"))
    everything, _ = run.read_events()
    assert Histories().of(run).status == derive_status(everything, locked=False)
