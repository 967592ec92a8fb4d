"""The build of the embedded base: goes on where it was cut off, and ends in a base that loads."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from trainer.model.embedded.build_loop import Plan, train


class _CutOff(Exception):
    pass


class Guess:
    """Loss of a small net that learns the sum of its inputs; cuts the run off at a given call."""

    def __init__(self, module: nn.Module, cut_off: int | None = None) -> None:
        self.module, self.cut_off, self.calls = module, cut_off, 0

    def __call__(self, generator: torch.Generator, share: float) -> tuple[Tensor, dict[str, float]]:
        self.calls += 1
        if self.calls == self.cut_off:
            raise _CutOff
        inputs = torch.randn(16, 8, generator=generator)
        error = self.module(inputs)[:, 0] - inputs.sum(1)
        return error.square().mean(), {"share": share}


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def _plan(loss: Guess, minutes: float) -> Plan:
    def error(module: nn.Module) -> dict[str, float]:
        return {"held out": float(module(torch.ones(1, 8)).detach())}

    return Plan("sum", loss.module, loss, minutes, 1e-2, save_every_seconds=0.0, measure=error)


def test_a_run_that_was_cut_off_goes_on_from_its_last_save(tmp_path: Path) -> None:
    with pytest.raises(_CutOff):
        train(_plan(Guess(_net(), cut_off=8), minutes=10), tmp_path)
    saved = torch.load(tmp_path / "sum.pt", weights_only=True)
    assert saved["step"] == 7
    spent = saved["seconds"]

    again = Guess(_net())
    train(_plan(again, minutes=(spent + 0.2) / 60), tmp_path)
    saved = torch.load(tmp_path / "sum.pt", weights_only=True)
    assert saved["step"] == 7 + again.calls
    assert saved["seconds"] > spent
    for name, parameter in again.module.named_parameters():
        assert torch.equal(parameter, saved["average"][name])
    lines = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert {"part", "step", "minutes", "held out"} <= set(lines[0])


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    train(_plan(Guess(_net()), minutes=0.1 / 60), tmp_path)
    again = Guess(_net())
    train(_plan(again, minutes=0.1 / 60), tmp_path)
    assert again.calls == 0


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    loss = Guess(_net(), cut_off=302)
    before = loss(torch.Generator().manual_seed(9), 0.0)[0].item()
    with pytest.raises(_CutOff):
        train(replace(_plan(loss, minutes=10), save_every_seconds=60.0), tmp_path)
    loss.cut_off = None
    assert loss(torch.Generator().manual_seed(9), 0.0)[0].item() < before / 2


@pytest.mark.slow
def test_the_whole_build_in_miniature_is_killed_goes_on_and_loads(tmp_path: Path) -> None:
    work, output = tmp_path / "work", tmp_path / "base"
    command = [sys.executable, "-m", "trainer.model.embedded.build"]
    command += ["--work", str(work), "--output", str(output), "--scenes", "500", "--batch", "4"]
    for part in ("vae", "text", "unet", "decoder"):
        command += [f"--minutes-{part}", "0.05"]
    first = subprocess.Popen(command)
    while not (work / "text-done.pt").exists():
        assert first.poll() is None, "the build ended before its text encoder was done"
        time.sleep(0.05)  # until the file is there: what we wait for is another process
    first.send_signal(signal.SIGKILL)
    first.wait()
    steps = torch.load(work / "vae.pt", weights_only=True)["step"]

    subprocess.run(command, check=True)
    assert torch.load(work / "vae.pt", weights_only=True)["step"] == steps
    pipeline = StableDiffusionPipeline.from_pretrained(output, safety_checker=None)
    images = pipeline("a red star", num_inference_steps=2, height=64, width=64).images
    assert images[0].size == (64, 64)
    logged = (work / "losses.jsonl").read_text()
    assert "psnr" in logged
    assert "held out" in logged
