"""Whole runs on a tiny base: resuming is bit-exact, stopping is clean, failures are told."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from trainer import events
from trainer.errors import DatasetError, RunDirectoryError
from trainer.fields import nest
from trainer.run import Run, State
from trainer.settings import parse
from trainer.training.attempt import attempt, check


@pytest.fixture
def new_run(tiny_base: Path, photos: Path, tmp_path: Path) -> Callable[..., Run]:
    """Makes a run of 6 steps in which everything random is in play."""

    def make(name: str = "run", **changes: Any) -> Run:
        values: dict[str, Any] = {
            "base.model": str(tiny_base),
            "dataset.folder": photos,
            "dataset.resolution": 64,
            "dataset.caption_dropout": 0.3,
            "dataset.flip": True,
            "adapter.rank": 2,
            "adapter.alpha": 2,
            "optimizer.learning_rate": 1e-2,
            "loss.noise_offset": 0.1,
            "training.steps": 6,
            "training.batch_size": 2,
            "training.gradient_accumulation": 2,
            "training.checkpoint_every_steps": 2,
            "validation.every_steps": 3,
            "validation.timesteps": 2,
            "samples.prompts": ("a picture",),
            "samples.every_steps": 3,
            "samples.steps": 2,
            "output.precision": "fp32",
        }
        values |= {key.replace("__", "."): value for key, value in changes.items()}
        run = Run(tmp_path / name)
        run.create(parse(nest(values)))
        return run

    return make


def _tensors(run: Run) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run.adapter_file)


def _same(first: Run, second: Run) -> bool:
    one, other = _tensors(first), _tensors(second)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def _of(run: Run, kind: type[events.Event]) -> list[Any]:
    return [event for event in run.read_events()[0] if isinstance(event, kind)]


def test_a_run_leaves_what_it_promises(new_run: Callable[..., Run]) -> None:
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
    assert any(tensor.abs().max() > 0 for key, tensor in _tensors(run).items() if "up" in key)
    with pytest.raises(RunDirectoryError, match="is finished"):
        attempt(run)


def test_stop_then_resume_equals_an_uninterrupted_run(new_run: Callable[..., Run]) -> None:
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
    assert _same(whole, parted)
    assert [event.attempt for event in _of(parted, events.Started)] == [1, 2]


def test_resume_from_any_checkpoint_is_bit_exact(new_run: Callable[..., Run]) -> None:
    whole = new_run("whole")
    attempt(whole)
    for step in (2, 4):
        again = new_run(f"from-{step}")
        shutil.copytree(
            whole.checkpoints / f"step-{step:06d}.state",
            again.checkpoints / f"step-{step:06d}.state",
        )
        attempt(again)
        assert _same(whole, again)


def test_a_damaged_checkpoint_is_passed_over(new_run: Callable[..., Run]) -> None:
    whole, again = new_run("whole"), new_run("again")
    attempt(whole)
    shutil.copytree(whole.checkpoints, again.checkpoints)
    shutil.rmtree(again.checkpoints / "step-000006.state")
    damaged = again.checkpoints / "step-000004.state" / "tensors.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    steps: list[int] = []
    attempt(again, lambda event: steps.append(event.step) if type(event) is events.Step else None)
    assert min(steps) == 3
    assert _same(whole, again)


def test_a_killed_run_is_interrupted_and_resumes_bit_exactly(new_run: Callable[..., Run]) -> None:
    whole, killed = new_run("whole"), new_run("killed")
    attempt(whole)
    trainer = subprocess.Popen(
        [sys.executable, "-m", "trainer", "resume", str(killed.path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not _of(killed, events.CheckpointSaved):
        assert trainer.poll() is None
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    assert killed.status().state is State.INTERRUPTED
    assert not killed.locked()
    attempt(killed)
    assert _same(whole, killed)
    assert not list(killed.path.rglob("*.partial"))


def test_two_trainers_on_one_run(new_run: Callable[..., Run]) -> None:
    run = new_run()
    with run.lock(), pytest.raises(RunDirectoryError, match="in use by another trainer"):
        attempt(run)


def test_a_failure_is_told_in_the_events(new_run: Callable[..., Run], tmp_path: Path) -> None:
    run = new_run(dataset__folder=tmp_path / "gone")
    with pytest.raises(DatasetError):
        attempt(run)
    status = run.status()
    assert status.state is State.FAILED
    assert "gone" in status.message


def test_save_and_sample_now(new_run: Callable[..., Run]) -> None:
    run = new_run(training__checkpoint_every_steps=100, samples__every_steps=100, training__steps=3)

    def ask(event: events.Event) -> None:
        if isinstance(event, events.Ready):
            run.request("save")
            run.request("sample")

    attempt(run, ask)
    assert [event.step for event in _of(run, events.CheckpointSaved)] == [1, 3]
    assert [event.step for event in _of(run, events.Sampled)] == [1, 3]


def test_the_text_encoder_can_stay_as_it_is(new_run: Callable[..., Run]) -> None:
    run = new_run(adapter__text_encoder=False, training__steps=2)
    attempt(run)
    assert all(key.startswith("lora_unet_") for key in _tensors(run))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_learns_a_single_image(new_run: Callable[..., Run], photos: Path, tmp_path: Path,
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
