"""The recommended checkpoint is the one to use: asked again with other noise, hardly any is better.

The runs are made to overfit: three pictures, a rate that is far too high, a checkpoint every six
steps. What the recommendation went by, eight noise levels of each picture, is not what it is judged
by: 32 levels with noise of another seed, over the files as other tools would load them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.trainer.training.runs import new_run
from trainer import states
from trainer.adapter.attach import attach
from trainer.data.dataset import scan
from trainer.preview.session import load_for
from trainer.run import Run
from trainer.training.attempt import attempt
from trainer.training.prepare import prepare
from trainer.training.validation import Probe, measure


def _asked_again(run: Run) -> dict[int, float]:
    """The held-out loss of every checkpoint's file, with other noise and more noise levels."""
    wanted = run.settings()
    folder = wanted.dataset.folder
    assert folder is not None
    prepared = prepare(wanted, scan(folder), lambda stage, done, total: None, saved=None)
    prepared.attachment.detach()
    held_out = prepared.held_out
    assert held_out is not None
    probe = Probe("again", held_out.images, 32, 77, 8, held_out.conditions)
    losses = {}
    for file in run.checkpoints.glob("step-*.safetensors"):
        given = load_for(prepared.model.family, prepared.model.parts, file)
        with attach(prepared.model.parts, {"file": given}):
            losses[states.step_of(file)] = measure(prepared.model, probe)
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 3])
def test_hardly_any_checkpoint_is_better(tmp_path: Path, seed: int) -> None:
    run = new_run(
        tmp_path / "run",
        Path("embedded"),
        Path(__file__).parents[3] / "samples" / "character",
        **{
            "training__seed": seed, "training__steps": 72, "training__gradient_accumulation": 1,
            "training__checkpoint_every_steps": 6, "validation__every_steps": 6,
            "validation__held_out": 9, "validation__timesteps": 8, "samples__prompts": (),
            "optimizer__learning_rate": 4e-3, "optimizer__schedule": "constant",
            "adapter__rank": 8, "adapter__alpha": 8, "adapter__targets": "linear-conv",
            "dataset__caption_dropout": 0.0, "dataset__tag_dropout": 0.0, "dataset__flip": False,
            "dataset__random_crop": None, "dataset__color_jitter": None, "loss__noise_offset": None,
        },
    )  # fmt: skip
    attempt(run)
    losses = _asked_again(run)
    best = min(losses.values())
    assert losses[72] > 1.05 * best  # it did overfit
    report = json.loads(run.report_file.read_text())
    assert losses[report["recommended"]["step"]] <= 1.02 * best
    assert any(verdict["kind"] in ("overfitting", "too_hot") for verdict in report["verdicts"])
