"""A forecast is what then happens: where a clock says so, and in real runs.

The clock of real runs counts what passes through the UNet, so that it does not matter what else the
machine does; `bench/forecast.py` takes the clock on the wall.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.training.runs import new_run
from trainer import events
from trainer.fields import nest
from trainer.run import State
from trainer.settings_file import parse
from trainer.training import artifacts, forecast
from trainer.training.attempt import attempt
from trainer.training.forecast import Forecaster, times_due

CPU = torch.device("cpu")
PER_STEP, PER_VALIDATION, PER_SAMPLES, PER_CHECKPOINT = 0.7, 5.0, 11.0, 0.3


class Clock:
    """Seconds that pass only when told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@given(done=st.integers(0, 300), steps=st.integers(1, 300), every=st.integers(1, 100))
def test_what_is_due_is_counted(done: int, steps: int, every: int) -> None:
    due = [step for step in range(done + 1, steps + 1) if step % every == 0 or step == steps]
    assert times_due(done, steps, every) == len(due)


@pytest.mark.parametrize("start", [0, 40])
def test_the_forecast_is_what_then_happens(start: int) -> None:
    wanted = parse(
        nest({"training.steps": 100, "validation.every_steps": 15,
              "samples.every_steps": 30, "training.checkpoint_every_steps": 3})
    )  # fmt: skip
    clock = Clock()
    forecaster = Forecaster(wanted, clock=clock)
    said: list[events.Forecast] = []

    def spend(kind: Any, seconds: float, **fields: Any) -> None:
        clock.now += seconds
        forecaster.heard(kind(step=0, seconds=seconds, **fields))

    clock.now += 20  # loading
    spend(events.Validated, PER_VALIDATION, training=1.0, base_training=1.0)
    spend(events.Sampled, PER_SAMPLES, files=(), prompts=())
    spend(events.CheckpointSaved, PER_CHECKPOINT, file="f")
    for done in range(start + 1, 101):
        clock.now += PER_STEP * (4 if done == start + 1 else 1)  # the first one warms up
        if told_now := forecaster.step(done, CPU):
            said.append(told_now)
            assert done < start + 15  # before the long part
        if done % 15 == 0 or done == 100:
            spend(events.Validated, PER_VALIDATION, training=1.0, base_training=1.0)
        if done % 3 == 0 or done == 100:
            spend(events.CheckpointSaved, PER_CHECKPOINT, file="f")
        if done % 30 == 0 or done == 100:
            spend(events.Sampled, PER_SAMPLES, files=(), prompts=())
    (told,) = said
    assert told.seconds_per_step == pytest.approx(PER_STEP)
    assert told.total_seconds == pytest.approx(clock.now - 100)
    assert told.peak_memory is not None
    assert told.fits
    assert "of memory" in told.words


def test_a_forecast_is_said_again_when_things_go_otherwise() -> None:
    wanted = parse(nest({"training.steps": 100}))
    clock = Clock()
    forecaster = Forecaster(wanted, clock=clock)
    said: dict[int, float] = {}
    for done in range(1, 101):
        clock.now += PER_STEP * (3 if done > 50 else 1)  # another program began
        if told := forecaster.step(done, CPU):
            said[done] = told.total_seconds
    took = clock.now - Clock.now
    assert said.pop(11) == pytest.approx(100 * PER_STEP)
    assert 51 < min(said) < 65
    assert list(said.values())[-1] == pytest.approx(took, rel=0.15)


def test_a_run_too_short_to_judge_has_no_forecast() -> None:
    forecaster = Forecaster(parse(nest({"training.steps": 4})))
    assert all(forecaster.step(done, CPU) is None for done in range(1, 5))


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Trainers take the time from a clock that counts images which pass through the UNet, three
    times where gradients are taken, as the way back costs twice the way there."""
    clock, real = Clock(), UNet2DConditionModel.forward

    def forward(self: UNet2DConditionModel, sample: torch.Tensor, *rest: Any, **more: Any) -> Any:
        clock.now += len(sample) * (3 if torch.is_grad_enabled() else 1)
        return real(self, sample, *rest, **more)

    monkeypatch.setattr(UNet2DConditionModel, "forward", forward)
    monkeypatch.setattr(forecast, "Forecaster", partial(Forecaster, clock=clock))
    monkeypatch.setattr(artifacts, "time", SimpleNamespace(monotonic=clock))
    return clock


@pytest.mark.parametrize("base", ["embedded", "Stable Diffusion 1.5"])
def test_a_run_takes_what_was_forecast(
    base: str, tiny_base: Path, photos: Path, tmp_path: Path, work: Clock
) -> None:
    changes: dict[str, Any] = {"training__gradient_accumulation": 1, "samples__steps": 4}
    changes |= {"training__steps": 50} | {
        f"{what}__every_steps": 20 for what in ("validation", "samples")
    }
    changes["training__checkpoint_every_steps"] = 20
    run = new_run(
        tmp_path / "run", tiny_base if base != "embedded" else Path(base), photos, **changes
    )
    told: list[tuple[events.Forecast, float, int]] = []
    began = work.now

    def hear(event: events.Event) -> None:
        if isinstance(event, events.Forecast):
            told.append((event, work.now - began, run.status().step))

    assert attempt(run, hear) is State.FINISHED
    took = work.now - began
    said, at, done = told[0]
    assert said.total_seconds == pytest.approx(took, rel=0.05)
    assert done < 20  # before the long part
    assert at < 0.6 * took
    assert said.fits


def test_a_report_has_the_forecast_beside_what_it_took(
    small_base: Path, photos: Path, tmp_path: Path
) -> None:
    run = new_run(tmp_path / "run", small_base, photos, training__steps=8)
    attempt(run)
    report = json.loads(run.report_file.read_text())
    (said,) = (e for e in run.read_events()[0] if isinstance(e, events.Forecast))
    assert report["forecast_seconds"] == pytest.approx(said.total_seconds, abs=0.1)
    assert report["seconds"] > 0
