"""Whole runs on a tiny base: resuming is bit-exact, stopping is clean, failures are told."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.trainer.training import runs
from tests.trainer.training.runs import NewRun, same, tensors
from trainer import events
from trainer.errors import (
    AdapterError,
    DatasetError,
    NonFinite,
    OutOfMemory,
    RunDirectoryError,
    RunFailed,
)
from trainer.run import Run, State
from trainer.settings import parse
from trainer.training.attempt import attempt, check


@pytest.fixture
def new_run(small_base: Path, photos: Path, tmp_path: Path) -> NewRun:
    """Makes runs of 6 steps; see `runs.new_run`."""

    def make(name: str = "run", **changes: Any) -> Run:
        return runs.new_run(tmp_path / name, small_base, photos, **changes)

    return make


def _of(run: Run, kind: type[events.Event]) -> list[Any]:
    return [event for event in run.read_events()[0] if isinstance(event, kind)]


def test_a_run_leaves_what_it_promises(new_run: NewRun) -> None:
    run = new_run()
    assert attempt(run) is State.FINISHED
    assert run.status().state is State.FINISHED
    assert [event.step for event in _of(run, events.Validated)] == [0, 3, 6]
    assert [event.step for event in _of(run, events.CheckpointSaved)] == [2, 4, 6]
    assert [event.step for event in _of(run, events.Sampled)] == [3, 6]
    for event in _of(run, events.Sampled):
        assert all((run.path / file).is_file() for file in event.files)
    report = json.loads(run.report_file.read_text())
    assert report["validations"][0]["held_out"] == report["validations"][0]["base_held_out"]
    assert any(tensor.abs().max() > 0 for key, tensor in tensors(run).items() if "up" in key)
    with pytest.raises(RunDirectoryError, match="is finished"):
        attempt(run)


def test_stop_then_resume_equals_an_uninterrupted_run(new_run: NewRun) -> None:
    whole, parted = new_run("whole"), new_run("parted", training__checkpoint_every_steps=100)
    attempt(whole)

    def ask(event: events.Event) -> None:
        if isinstance(event, events.Validated) and event.step == 3:
            parted.request("stop")
            parted.request("stop")

    assert attempt(parted, ask) is State.STOPPED
    status = parted.status()
    assert (status.state, status.step) == (State.STOPPED, 4)
    assert attempt(parted) is State.FINISHED
    assert same(whole, parted)
    assert [event.attempt for event in _of(parted, events.Started)] == [1, 2]


def test_resume_from_any_checkpoint_is_bit_exact(new_run: NewRun) -> None:
    whole = new_run("whole")
    attempt(whole)
    for step in (2, 4):
        again = new_run(f"from-{step}")
        shutil.copytree(
            whole.checkpoints / f"step-{step:06d}.state",
            again.checkpoints / f"step-{step:06d}.state",
        )
        attempt(again)
        assert same(whole, again)


def test_a_damaged_checkpoint_is_passed_over(new_run: NewRun) -> None:
    whole, again = new_run("whole"), new_run("again")
    attempt(whole)
    shutil.copytree(whole.checkpoints, again.checkpoints)
    shutil.rmtree(again.checkpoints / "step-000006.state")
    damaged = again.checkpoints / "step-000004.state" / "tensors.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    attempt(again)
    assert [event.step for event in _of(again, events.Validated)] == [3, 6]  # from step 2 on
    assert same(whole, again)


def test_a_killed_run_is_interrupted_and_resumes_bit_exactly(new_run: NewRun) -> None:
    whole, killed = new_run("whole"), new_run("killed")
    attempt(whole)
    trainer = subprocess.Popen(
        [sys.executable, "-m", "trainer", "resume", str(killed.path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not _of(killed, events.CheckpointSaved):
        with contextlib.suppress(subprocess.TimeoutExpired):
            pytest.fail(f"the trainer ended with {trainer.wait(0.1)}")
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    assert killed.status().state is State.INTERRUPTED
    assert not killed.locked()
    attempt(killed)
    assert same(whole, killed)
    assert not list(killed.path.rglob("*.partial"))


def test_two_trainers_on_one_run(new_run: NewRun) -> None:
    run = new_run()
    with run.lock(), pytest.raises(RunDirectoryError, match="in use by another trainer"):
        attempt(run)


def test_a_failure_is_told_in_the_events(new_run: NewRun, tmp_path: Path) -> None:
    run = new_run(dataset__folder=tmp_path / "gone")
    with pytest.raises(DatasetError):
        attempt(run)
    status = run.status()
    assert status.state is State.FAILED
    assert "gone" in status.message


def test_save_and_sample_now(new_run: NewRun) -> None:
    run = new_run(training__checkpoint_every_steps=100, samples__every_steps=100, training__steps=3)

    def ask(event: events.Event) -> None:
        if isinstance(event, events.Ready):
            run.request("save")
            run.request("sample")

    attempt(run, ask)
    assert [event.step for event in _of(run, events.CheckpointSaved)] == [1, 3]
    assert [event.step for event in _of(run, events.Sampled)] == [1, 3]


def test_the_text_encoder_can_stay_as_it_is(new_run: NewRun) -> None:
    run = new_run(adapter__text_encoder=False, training__steps=2)
    attempt(run)
    assert all(key.startswith("lora_unet_") for key in tensors(run))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_learns_a_single_image(new_run: NewRun, photos: Path, tmp_path: Path,
                               precision: str) -> None:  # fmt: skip
    folder = tmp_path / "one"
    folder.mkdir()
    shutil.copy(photos / "1.png", folder)
    run = new_run(
        base__precision=precision, dataset__folder=folder, training__steps=30,
        training__gradient_accumulation=1, loss__noise_offset=None, samples__prompts=(),
        adapter__targets="linear-conv", adapter__rank=8, adapter__alpha=8,
        training__checkpoint_every_steps=100, validation__every_steps=100,
    )  # fmt: skip
    attempt(run)
    last = _of(run, events.Validated)[-1]
    assert last.training < 0.9 * last.base_training


def test_check_finds_what_is_wrong_without_writing(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="There is no dataset"):
        check(parse({}))


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer__name": "schedule_free", "adapter__ema_decay": 0.9},
        {"optimizer__name": "prodigy", "optimizer__learning_rate": 1.0},
        {"optimizer__name": "adamw8bit"},
        {"optimizer__name": "adafactor", "adapter__max_norm": 0.2},
        {"optimizer__name": "lion", "optimizer__lora_plus_ratio": 4, "loss__multires_noise": 0.3,
         "loss__input_perturbation": 0.1, "training__timesteps": "logit_normal"},
    ],
    ids=lambda changes: str(changes["optimizer__name"]),
)  # fmt: skip
def test_every_optimizer_resumes_bit_exactly(new_run: NewRun, changes: dict[str, Any]) -> None:
    whole, again = new_run("whole", **changes), new_run("again", **changes)
    attempt(whole)
    shutil.copytree(
        whole.checkpoints / "step-000004.state", again.checkpoints / "step-000004.state"
    )
    attempt(again)
    assert same(whole, again)
    often = new_run("often", training__checkpoint_every_steps=1, **changes)
    attempt(often)
    assert same(whole, often)  # saving, measuring and drawing change nothing


def _poison(monkeypatch: pytest.MonkeyPatch, calls: set[int]) -> None:
    """Makes the loss of some passes, counted from 0, infinite."""
    from trainer.training.objective import Objective

    real, count = Objective.losses, iter(range(10_000))

    def losses(self: Objective, *arguments: Any) -> torch.Tensor:
        return real(self, *arguments) * (float("inf") if next(count) in calls else 1.0)

    monkeypatch.setattr(Objective, "losses", losses)


def test_a_step_that_is_not_finite_is_skipped_and_named(
    new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    _poison(monkeypatch, {3})  # the second pass of the second step
    run = new_run()
    assert attempt(run) is State.FINISHED
    notices = [event.message for event in _of(run, events.Notice)]
    assert any("Step 2 was skipped" in notice and ".png" in notice for notice in notices)
    assert json.loads(run.report_file.read_text())["skipped_steps"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in tensors(run).values())


def test_after_many_bad_steps_the_run_goes_back_once_with_half_the_rate(
    new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"training__steps": 9, "training__gradient_accumulation": 1}
    _poison(monkeypatch, {2, 3, 4, 5, 6})
    run = new_run(**changes)
    assert attempt(run) is State.FINISHED
    assert any("back to step 2, with half" in event.message for event in _of(run, events.Notice))

    _poison(monkeypatch, set(range(4, 10_000)))
    hopeless = new_run("hopeless", **changes)
    with pytest.raises(NonFinite, match="5 steps in a row"):
        attempt(hopeless)
    assert hopeless.status().state is State.FAILED
    for file in hopeless.checkpoints.rglob("*.safetensors"):
        assert all(torch.isfinite(t).all() for t in safetensors.torch.load_file(file).values())


@pytest.mark.parametrize("message", ["CUDA out of memory", "can't allocate memory: 12 bytes"])
def test_out_of_memory_does_the_same_in_parts(
    new_run: NewRun, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    from trainer.training.objective import Objective

    whole = new_run("whole")
    attempt(whole)
    real = Objective.losses

    def losses(self: Objective, question: Any, images: slice) -> torch.Tensor:
        if images.stop - images.start > 1:
            raise RuntimeError(message)
        return real(self, question, images)

    monkeypatch.setattr(Objective, "losses", losses)
    run = new_run()
    assert attempt(run) is State.FINISHED
    assert any("done in 2 parts" in event.message for event in _of(run, events.Notice))
    one, other = tensors(whole), tensors(run)
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=1e-3, atol=1e-4)


def test_out_of_memory_for_good_fails_with_advice(
    new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.training.objective import Objective

    def losses(self: Objective, *arguments: Any) -> torch.Tensor:
        raise MemoryError

    monkeypatch.setattr(Objective, "losses", losses)
    run = new_run()
    with pytest.raises(OutOfMemory, match=r"Lower dataset\.resolution"):
        attempt(run)
    assert "recomputed" in " ".join(event.message for event in _of(run, events.Notice))


def test_a_full_disk_pauses_the_run(new_run: NewRun, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from trainer.training import checkpoint, reporter

    real, failures = checkpoint.save, iter([True, True])

    def save(*arguments: Any) -> Path:
        if next(failures, False):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(checkpoint, "save", save)
    monkeypatch.setattr(reporter, "_SECONDS_BETWEEN_TRIES", 0.0)
    heard: list[str] = []
    run = new_run()
    attempt(run, lambda event: heard.append(getattr(event, "message", "")))
    assert run.status().state is State.FINISHED
    assert heard.count("The disk is full. Make room to go on.") == 1


def test_patience_ends_a_run_that_gets_no_better(new_run: NewRun) -> None:
    run = new_run(
        optimizer__learning_rate=1.0, training__steps=50, validation__every_steps=1,
        validation__patience=2, samples__prompts=(), training__checkpoint_every_steps=1,
        optimizer__max_gradient_norm=None,
    )  # fmt: skip
    assert attempt(run) is State.FINISHED
    assert run.status().step < 50
    report = json.loads(run.report_file.read_text())
    chosen = report["recommended"]["step"]
    losses = {item["step"]: item["held_out"] for item in report["validations"]}
    assert losses[chosen] == min(loss for step, loss in losses.items() if step > 0)
    assert (run.path / report["recommended"]["file"]).is_file()


def test_going_on_from_an_adapter(new_run: NewRun) -> None:
    first = new_run("first")
    attempt(first)
    second = new_run("second", adapter__start_from=first.adapter_file, adapter__alpha=1)
    attempt(second)
    begun, ended = _of(second, events.Validated)[0], _of(first, events.Validated)[-1]
    assert begun.held_out == pytest.approx(ended.held_out, rel=1e-4)
    wrong = new_run("wrong", adapter__start_from=first.adapter_file, adapter__rank=5)
    with pytest.raises(AdapterError, match="not an adapter of rank 5"):
        attempt(wrong)


def test_a_file_that_differs_from_the_model_is_caught(
    new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.training import artifacts

    real = artifacts.save_adapter

    def save(adapter: Any, path: Path, *rest: Any, **options: Any) -> None:
        damaged = {key: replace(factor, up=factor.up * 2) for key, factor in adapter.items()}
        real(damaged, path, *rest, **options)

    monkeypatch.setattr(artifacts, "save_adapter", save)
    with pytest.raises(RunFailed, match="read back, differs"):
        attempt(new_run())


def test_resuming_may_change_the_rate_and_extend_the_steps(new_run: NewRun) -> None:
    from trainer.cli_train import change_settings

    run = new_run(optimizer__schedule="constant", optimizer__warmup=0.0)
    attempt(run)
    with pytest.raises(RunDirectoryError, match="is finished"):
        change_settings(run, {"output.name": "other"})
    change_settings(run, {"training.steps": "8", "optimizer.learning_rate": "0.5"})
    assert attempt(run) is State.FINISHED
    started, last = _of(run, events.Started)[-1], _of(run, events.Step)[-1]
    assert (started.from_step, last.step, last.learning_rate) == (6, 8, 0.5)


def test_a_request_from_before_the_process_is_dropped_and_a_new_one_is_not(
    new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.training import attempt as module

    run = new_run()
    run.request("stop")  # pressed while the trainer was starting
    assert attempt(run) is State.STOPPED
    run.request("stop")
    monkeypatch.setattr(module, "_IMPORTED", float("inf"))  # asked of a trainer that is gone
    assert attempt(run) is State.FINISHED


def test_a_run_needs_its_starting_adapter_only_once(new_run: NewRun) -> None:
    first = new_run("first")
    attempt(first)
    second = new_run("second", adapter__start_from=first.adapter_file)
    second.request("stop")
    assert attempt(second) is State.STOPPED
    first.adapter_file.unlink()
    assert attempt(second) is State.FINISHED
