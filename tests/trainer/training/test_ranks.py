"""Several processes share a run: one adapter, one writer, and no end that cannot be resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.training.runs import new_run, tensors
from trainer import events
from trainer.run import Run, State
from trainer.settings_file import parse
from trainer.training.attempt import attempt
from trainer.training.ranks import Ranks, shareable

LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1",
                 "--nproc_per_node", "2"],
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
                   "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
                   "--main_process_port", "0"],
}  # fmt: skip


def _launch(run: Run, launcher: str = "torchrun") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "trainer", "resume", str(run.path)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def _finish(process: subprocess.Popen[str]) -> None:
    said = process.communicate(timeout=240)[1]
    assert process.returncode == 0, said


def _close(one: Run, other: Run) -> None:
    """Both adapters are one, up to the order of sums."""
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        torch.testing.assert_close(tensor, second[key], rtol=0, atol=1e-5)


def _trainers(launcher: subprocess.Popen[str]) -> Sequence[int]:
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(launcher.pid)], capture_output=True, text=True
    )
    return [int(pid) for pid in found.stdout.split()]


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 7))
def test_the_parts_of_all_processes_are_the_whole_step(passes: int, images: int, size: int) -> None:
    done = [
        (number, image)
        for rank in range(size)
        for number, part in Ranks(rank, size).part(passes)
        for image in part(images)
    ]
    assert sorted(done) == [(p, i) for p in range(passes) for i in range(images)]
    if passes % size == 0:  # then nothing is split
        parts = [list(Ranks(rank, size).part(passes)) for rank in range(size)]
        assert {len(part) for part in parts} == {passes // size}


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8))
def test_passes_are_added_until_all_have_the_same_to_do(batch: int, passes: int, size: int) -> None:
    wanted = parse({"training": {"batch_size": batch, "gradient_accumulation": passes}})
    shared = shareable(wanted, size).training
    assert shared.gradient_accumulation * batch % size == 0
    if passes * batch % size == 0:
        assert shared == wanted.training


def test_two_processes_give_the_adapter_of_one(
    small_base: Path, photos: Path, tmp_path: Path
) -> None:
    changes = {"base__device": "cpu", "validation__patience": 50}
    alone = new_run(tmp_path / "alone", small_base, photos, **changes)
    shared = new_run(tmp_path / "shared", small_base, photos, **changes)
    process = _launch(shared, "accelerate")
    attempt(alone)
    _finish(process)
    _close(alone, shared)
    history = shared.read_events()[0]
    kinds = [event.type for event in history]
    assert kinds.count("started") == kinds.count("finished") == 1  # one writer
    said = [event.message for event in history if isinstance(event, events.Notice)]
    assert any("2 processes share the 4 images of each step (2 x 2)" in line for line in said)
    report = json.loads(shared.report_file.read_text())
    assert report["validations"][-1]["step"] == 6


def test_a_killed_process_interrupts_the_run_which_one_process_can_resume(
    small_base: Path, photos: Path, tmp_path: Path
) -> None:
    changes = {"base__device": "cpu", "training__checkpoint_every_steps": 1, "training__steps": 40,
               "samples__prompts": ()}  # fmt: skip
    alone = new_run(tmp_path / "alone", small_base, photos, **changes)
    killed = new_run(tmp_path / "killed", small_base, photos, **changes)
    process = _launch(killed)
    attempt(alone)
    while killed.newest_checkpoint() < 2:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    first = next(e.pid for e in killed.read_events()[0] if isinstance(e, events.Started))
    (victim,) = set(_trainers(process)) - {first}
    os.kill(victim, signal.SIGKILL)
    assert process.wait(timeout=60) != 0  # the other one ended by itself, or its launcher ended it
    assert killed.status().state is State.INTERRUPTED
    attempt(killed)
    _close(alone, killed)
    said = [e.message for e in killed.read_events()[0] if isinstance(e, events.Notice)]
    assert any("processes was 2, is 1" in line for line in said)


def test_all_processes_stop_at_the_same_step(
    small_base: Path, photos: Path, tmp_path: Path
) -> None:
    run = new_run(tmp_path / "run", small_base, photos, base__device="cpu", training__steps=500)
    process = _launch(run)
    while not any(isinstance(event, events.Step) for event in run.read_events()[0]):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    run.request("stop")
    _finish(process)
    status = run.status()
    assert status.state is State.STOPPED
    assert status.step == run.newest_checkpoint() < 500
