"""Whole runs on a tiny base: resuming is bit-exact, stopping is clean, failures are told."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image

from tests.trainer.training import runs
from tests.trainer.training.runs import NewRun, same, tensors
from trainer import events
from trainer.errors import (
    AdapterError,
    BaseModelError,
    DatasetError,
    NonFinite,
    OutOfMemory,
    RunDirectoryError,
    RunFailed,
)
from trainer.run import Run, State
from trainer.settings_file import parse
from trainer.training.attempt import attempt, check
from trainer.training.loop import Loop


@pytest.fixture
def new_run(small_base: Path, photos: Path, tmp_path: Path) -> NewRun:
    """Makes runs of 6 steps; see `runs.new_run`."""

    def make(name: str = "run", **changes: Any) -> Run:
        return runs.new_run(tmp_path / name, small_base, photos, **changes)

    return make


def _of(run: Run, kind: type[events.Event]) -> list[Any]:
    return [event for event in run.read_events()[0] if isinstance(event, kind)]


def _stop_at(run: Run, kind: type[events.Event]) -> Callable[[events.Event], None]:
    """A listener that asks a run to stop, twice, as soon as it says something of a kind."""

    def hear(event: events.Event) -> None:
        if isinstance(event, kind):
            run.request("stop")
            run.request("stop")

    return hear


def test_a_run_leaves_what_it_promises(new_run: NewRun) -> None:
    run = new_run()
    assert attempt(run) is State.FINISHED
    assert run.status().state is State.FINISHED
    assert [event.step for event in _of(run, events.Validated)] == [0, 3, 6]
    saved = [event.step for event in _of(run, events.CheckpointSaved)]
    assert {2, 4, 6} <= set(saved) <= {2, 3, 4, 6}  # 3 was measured, and may be the lowest
    assert [event.step for event in _of(run, events.Sampled)] == [0, 3, 6]
    for event in _of(run, events.Sampled):
        for file in event.files:
            told = Image.open(run.path / file).info["parameters"]
            assert told.startswith("a picture\nSteps: 2, Sampler: DDIM, ")
    report = json.loads(run.report_file.read_text())
    assert report["validations"][0]["held_out"] == report["validations"][0]["base_held_out"]
    assert [entry["step"] for entry in report["checkpoints"]] == saved
    assert report["checkpoints"][-1]["samples"] == list(_of(run, events.Sampled)[-1].files)
    assert report["losses"][-1][0] == 6
    advice = _of(run, events.Recommended)[-1]
    assert report["recommended"] == {"step": advice.step, "file": advice.file, "why": advice.why}
    assert (run.path / advice.file).is_file()
    assert any(tensor.abs().max() > 0 for key, tensor in tensors(run).items() if "up" in key)
    assert not list(run.path.rglob("*.partial"))
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
    assert json.loads(parted.report_file.read_text())["steps"] == 4  # so far
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
    for step in (3, 6):
        shutil.rmtree(again.checkpoints / f"step-{step:06d}.state", ignore_errors=True)
    damaged = again.checkpoints / "step-000004.state" / "tensors.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    attempt(again)
    assert [event.step for event in _of(again, events.Validated)] == [0, 3, 6]  # from step 2 on
    assert _of(again, events.Started)[0].from_step == 2
    assert same(whole, again)


_DIES_AT_A_CHECKPOINT = """
import os, signal, sys
from pathlib import Path
from trainer import events
from trainer.run import Run
from trainer.training.attempt import attempt

def hear(event):
    if isinstance(event, events.CheckpointSaved):
        os.kill(os.getpid(), signal.SIGKILL)

attempt(Run(Path(sys.argv[1])), hear)
"""


def test_a_killed_run_is_interrupted_and_resumes_bit_exactly(new_run: NewRun) -> None:
    whole, killed = new_run("whole"), new_run("killed")
    attempt(whole)
    trainer = subprocess.run([sys.executable, "-c", _DIES_AT_A_CHECKPOINT, str(killed.path)])
    assert trainer.returncode == -signal.SIGKILL
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
    assert [event.step for event in _of(run, events.Sampled)] == [0, 1, 3]


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


def _poison(monkeypatch: pytest.MonkeyPatch, calls: set[int], gradients_only: bool = False) -> None:
    """Makes the loss of some passes, counted from 0, infinite; or their gradients alone."""
    from trainer.training.objective import Objective

    real, count = Objective.losses, iter(range(10_000))

    def losses(self: Objective, *arguments: Any) -> torch.Tensor:
        found = real(self, *arguments)
        if next(count) not in calls:
            return found
        # A root of zero is zero, but infinitely steep.
        return found + (found * 0).sqrt() if gradients_only else found * float("inf")

    monkeypatch.setattr(Objective, "losses", losses)


@pytest.mark.parametrize("gradients_only", [False, True])
def test_a_step_that_is_not_finite_is_skipped_and_named(
    new_run: NewRun, monkeypatch: pytest.MonkeyPatch, gradients_only: bool
) -> None:
    _poison(monkeypatch, {3}, gradients_only)  # the second pass of the second step
    run = new_run()
    assert attempt(run, _stop_at(run, events.Sampled)) is State.STOPPED
    assert attempt(run, _stop_at(run, events.CheckpointSaved)) is State.STOPPED
    assert attempt(run) is State.FINISHED
    notices = [event.message for event in _of(run, events.Notice)]
    assert any("Step 2 was skipped" in notice and ".png" in notice for notice in notices)
    assert json.loads(run.report_file.read_text())["skipped_steps"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in tensors(run).values())


def test_gradients_that_no_loss_scale_makes_finite_end_a_run_in_fp16(
    new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.training import prepare

    real = prepare._accelerator

    def scaling(model: Any) -> Any:
        accelerator = real(model)
        scaler = accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)  # as on a GPU
        accelerator.unscale_gradients = lambda: scaler.unscale_(
            accelerator._optimizers[0].optimizer
        )
        return accelerator

    monkeypatch.setattr(prepare, "_accelerator", scaling)
    changes = {"training__gradient_accumulation": 1, "training__steps": 20}
    _poison(monkeypatch, {2, 3}, gradients_only=True)
    run = new_run(**changes)
    assert attempt(run) is State.FINISHED  # the scale took the blame
    assert json.loads(run.report_file.read_text())["skipped_steps"] == 0
    _poison(monkeypatch, set(range(4, 10_000)), gradients_only=True)
    hopeless = new_run("hopeless", **changes)
    with pytest.raises(NonFinite, match="5 steps in a row"):
        attempt(hopeless)
    said = [event.message for event in _of(hopeless, events.Notice)]
    assert any("back to step" in message for message in said)
    assert any("was skipped" in message and ".png" in message for message in said)


def test_steps_that_only_the_device_knows_to_be_bad_give_the_same_run(
    new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a GPU, where looking at a loss before the step would mean waiting for it.
    changes = {"training__steps": 12, "training__checkpoint_every_steps": 4,
               "training__gradient_accumulation": 1}  # fmt: skip
    bad = {1, 5, 6, 7, 8, 9}  # the passes from 5 on are five bad steps in a row
    _poison(monkeypatch, bad)
    seen = new_run("seen", **changes)
    attempt(seen)
    monkeypatch.setattr(Loop, "_may_stay_unseen", True)
    _poison(monkeypatch, bad)
    unseen = new_run("unseen", **changes)
    attempt(unseen)
    assert same(seen, unseen)
    for run in (seen, unseen):
        assert json.loads(run.report_file.read_text())["skipped_steps"] == 6
    told = [[event.message for event in _of(run, events.Notice)] for run in (seen, unseen)]
    assert told[0] == told[1]
    assert any("Step 2 was skipped" in message and ".png" in message for message in told[0])
    assert any("back to step 4" in message for message in told[0])


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
    with pytest.raises(OutOfMemory, match=r"lower dataset\.resolution"):
        attempt(run)
    assert "recomputed" in " ".join(event.message for event in _of(run, events.Notice))


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
    ended, first = run.status().step, tensors(run)
    run.adapter_file.unlink()
    assert attempt(run) is State.FINISHED  # as after a kill just before its end: no step is added
    assert run.status().step == ended
    assert all(torch.equal(first[key], again) for key, again in tensors(run).items())


def test_going_on_from_an_adapter(new_run: NewRun) -> None:
    first = new_run("first")
    attempt(first)
    second = new_run("second", adapter__start_from=first.adapter_file, adapter__alpha=1)
    attempt(second)
    begun, ended = _of(second, events.Validated)[0], _of(first, events.Validated)[-1]
    assert begun.held_out == pytest.approx(ended.held_out, rel=1e-4)
    wrong = new_run("wrong", adapter__start_from=first.adapter_file, adapter__rank=5)
    with pytest.raises(AdapterError, match=r"of the rank .* \(its rank is 2\)"):
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
    assert _of(run, events.Changed)[-1].changes == {
        "training.steps": ("6", "8"),
        "optimizer.learning_rate": ("0.01", "0.5"),
    }


def test_what_failures_advise_can_be_done_at_resume(
    new_run: NewRun, photos: Path, tmp_path: Path
) -> None:
    from trainer.cli_train import change_settings

    folder = _copied(photos, tmp_path / "dataset")
    run = new_run(dataset__folder=folder)
    assert attempt(run, _stop_at(run, events.Ready)) is State.STOPPED
    folder.rename(tmp_path / "moved")
    change_settings(
        run,
        {
            "base.precision": "bf16", "training.gradient_checkpointing": "true",
            "optimizer.learning_rate": "0.001", "dataset.folder": str(tmp_path / "moved"),
        },
    )  # fmt: skip
    assert attempt(run) is State.FINISHED
    said = [event.message for event in _of(run, events.Notice)]
    assert not any("dataset has changed" in message for message in said)
    assert _of(run, events.Ready)[-1].precision == "bfloat16"


def test_a_run_does_not_go_on_with_another_base(
    new_run: NewRun, small_base: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(small_base, tmp_path / "base"))
    run = new_run(base__model=str(base))
    assert attempt(run, _stop_at(run, events.Ready)) is State.STOPPED
    (file,) = (base / "unet").glob("*.safetensors")
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BaseModelError, match="is not the one that this run began with"):
        attempt(run)
    assert run.status().state is State.FAILED
    file.write_bytes(content)
    assert attempt(run) is State.FINISHED


def test_a_request_from_before_the_process_is_dropped_and_a_new_one_is_not(
    new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.training import attempt as module

    run = new_run()
    run.request("stop")  # pressed while the trainer was starting
    assert attempt(run) is State.STOPPED
    assert run.status().step == 0  # it did not go on to load the base and encode everything
    run.request("stop")
    monkeypatch.setattr(module, "_IMPORTED", float("inf"))  # asked of a trainer that is gone
    assert attempt(run) is State.FINISHED


def test_a_run_needs_its_starting_adapter_only_once(new_run: NewRun) -> None:
    first = new_run("first")
    attempt(first)
    second = new_run("second", adapter__start_from=first.adapter_file)
    assert attempt(second, _stop_at(second, events.Ready)) is State.STOPPED
    first.adapter_file.unlink()
    assert attempt(second) is State.FINISHED


def _copied(photos: Path, folder: Path) -> Path:
    return Path(shutil.copytree(photos, folder))


def test_images_that_vanish_or_break_before_they_are_encoded_are_left_out(
    new_run: NewRun, photos: Path, tmp_path: Path
) -> None:
    folder = _copied(photos, tmp_path / "dataset")
    run = new_run(dataset__folder=folder, dataset__cache="memory")

    def spoil(event: events.Event) -> None:
        if isinstance(event, events.Preparing) and event.stage.startswith("Loading"):
            (folder / "1.png").unlink(missing_ok=True)
            (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:60])

    assert attempt(run, spoil) is State.FINISHED
    assert _of(run, events.Ready)[0].images + _of(run, events.Ready)[0].held_out == 6
    said = " ".join(event.message for event in _of(run, events.Notice))
    assert "1.png is left out" in said
    assert "2.png is left out" in said
    assert json.loads(run.report_file.read_text())["skipped_images"] == ["1.png", "2.png"]


def test_an_image_that_vanishes_while_steps_are_done_is_left_out(
    new_run: NewRun, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.data.store import DiskStore

    folder = _copied(photos, tmp_path / "dataset")
    cache = tmp_path / "cache"
    monkeypatch.setenv("ATELIER_CACHE", str(cache))
    run = new_run(dataset__folder=folder, training__batch_size=1, validation__held_out=0)
    lost: list[Path] = []

    def vanish(event: events.Event) -> None:
        if isinstance(event, events.Ready):
            for image in folder.glob("[0-5].png"):
                lost.append(image)
                image.unlink()
            monkeypatch.setattr(DiskStore, "get", lambda self, key: None)

    assert attempt(run, vanish) is State.FINISHED
    skipped = json.loads(run.report_file.read_text())["skipped_images"]
    assert skipped
    assert set(skipped) <= {image.name for image in lost}
    assert all(torch.isfinite(tensor).all() for tensor in tensors(run).values())
