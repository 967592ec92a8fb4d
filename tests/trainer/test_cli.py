"""The command line as people meet it: a real process, one clear line for a mistake, exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from trainer.fields import leaves
from trainer.run import Run
from trainer.settings import Settings
from trainer.settings_file import parse


def atelier(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trainer", *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


def refusal(*arguments: object) -> str:
    """The one line with which a command refuses."""
    done = atelier(*arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.strip()


def test_a_dataset_is_checked_for_a_training_that_could_be(photos: Path) -> None:
    assert "dataset.resolution: should be a multiple of 8" in refusal(
        "dataset", "check", photos, "--resolution", 100
    )
    assert "dataset.max_tokens" in refusal("dataset", "check", photos, "--max_tokens", 76)
    found = json.loads(atelier("dataset", "check", photos, "--resolution", 64, "--json").stdout)
    assert found["images"] == found["captions"] == 8


@pytest.fixture
def train(small_base: Path, photos: Path, tmp_path: Path) -> Sequence[object]:
    """A command line that would train; a flag given again wins."""
    return ("train", "--run", tmp_path / "run", "--base.model", small_base,
            "--dataset.folder", photos, "--dataset.resolution", 64, "--training.steps", 2,
            "--validation.timesteps", 1)  # fmt: skip


def test_a_mistake_is_one_clear_line_and_nothing_is_written(
    train: Sequence[object], photos: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    whole = (photos / "1.png").read_bytes()
    (broken / "torn.png").write_bytes(whole[: len(whole) // 2])
    empty = tmp_path / "empty"
    empty.mkdir()
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "model.ckpt").touch()
    mistakes: list[tuple[Sequence[object], str]] = [
        (("--dataset.folder", tmp_path / "no"), "no"),
        (("--dataset.folder", empty), "no image"),
        (("--dataset.folder", broken), "torn.png"),
        (("--adapter.rank", 0), "adapter.rank: should be greater than or equal to 1"),
        (("--adapter.rnk", 4), "did you mean --adapter.rank?"),
        (("--optimizer.schedule", "wavy"), "optimizer.schedule"),
        (("--base.model", "nothing-like-it"), "There is no base 'nothing-like-it'"),
        (("--base.model", tmp_path), "is not a diffusers model"),
        (("--base.model", tmp_path / "model.ckpt"), "pickled"),
        (("--settings", tmp_path / "no.json"), "cannot read"),
        (("--from-adapter", tmp_path / "no.safetensors"), "no.safetensors cannot be read"),
        (("--preset", "miracle"), "invalid choice"),
        (("--run", file / "below"), "cannot be written"),
    ]
    for arguments, message in mistakes:
        assert message in refusal(*train, *arguments), arguments
    assert not (tmp_path / "run").exists()


def test_several_wrong_settings_are_each_named(train: Sequence[object]) -> None:
    done = atelier(*train, "--adapter.rank", 0, "--optimizer.learning-rate", "fast")
    assert done.returncode == 2
    assert [line.split(":")[1].strip() for line in done.stderr.splitlines()] == [
        "adapter.rank",
        "optimizer.learning_rate",
    ]


def test_the_main_job(train: Sequence[object], photos: Path, small_base: Path,
                      tmp_path: Path) -> None:  # fmt: skip
    """Train, look, be refused a second time, draw a strip, and be refused a foreign adapter."""
    dataset = shutil.copytree(photos, tmp_path / "dataset")
    (dataset / "1.txt").write_text("")
    run = tmp_path / "run"
    train = (*train, "--dataset.folder", dataset)
    done = atelier(*train, "--samples.prompts", "a shape", "another", "--samples.steps=2")
    assert done.returncode == 0, done.stderr
    assert "1.txt" in done.stderr or "caption" in done.stderr  # an empty caption is said
    assert Run(run).settings().samples.prompts == ("a shape", "another")

    status = json.loads(atelier("status", run, "--json").stdout)
    assert (status["state"], status["step"]) == ("finished", 2)
    assert "finished, step 2 of 2" in atelier("status", run).stdout
    assert "already holds a run, which is finished" in refusal(*train)
    assert "is not being trained" in refusal("stop", run)
    assert "is finished" in refusal("resume", run)

    sheet = tmp_path / "sheet.png"
    drawn = atelier(
        "preview", "--base", small_base, "--adapter", f"{run / 'adapter.safetensors'}=0.8",
        "--prompt", "a shape", "--prompt", "another", "--strengths", "0,0.5,1", "--steps", 2,
        "--output", sheet,
    )  # fmt: skip
    assert drawn.returncode == 0, drawn.stderr
    assert Image.open(sheet).width > 3 * 64

    preview = ("preview", "--base", small_base, "--prompt", "x", "--output", sheet, "--steps", 2)
    assert "no.safetensors" in refusal(*preview, "--adapter", f"{tmp_path / 'no.safetensors'}=1")
    assert "not a list of numbers" in refusal(*preview, "--strengths", "0,high")
    assert "strip" in refusal(*preview, "--strengths", "99")
    assert "does not end in .png" in refusal(*preview, "--output", tmp_path / "x.jpg")
    assert "made for" in refusal(
        "preview", "--prompt", "x", "--output", sheet, "--base", "embedded",
        "--adapter", f"{run / 'adapter.safetensors'}=1",
    )  # fmt: skip


def test_flags_over_file_over_preset(train: Sequence[object], tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"adapter": {"rank": 3}, "training": {"steps": 9}}))
    done = atelier(*train, "--preset", "embedded-style", "--settings", file, "--adapter.alpha=2")
    assert done.returncode == 0, done.stderr
    wanted = Run(tmp_path / "run").settings()
    assert (wanted.training.steps, wanted.adapter.rank, wanted.adapter.alpha) == (2, 3, 2)
    assert wanted.training.batch_size == 4  # from the preset


def test_resume_may_change_some_settings_only(train: Sequence[object], tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.create(parse({"training": {"steps": 5}}))
    for name, value, reason in (
        ("adapter.rank", 4, "adapter.rank: is 16 in this run and stays so, since the weights"),
        ("base.model", "other", "base.model: is embedded in this run and stays so, since what has"),
        ("optimizer.name", "lion", "the optimizer's memory"),
        ("training.seed", 3, "the steps so far"),
    ):
        assert reason in refusal("resume", run.path, f"--{name}", value)
        assert f"--{name}" not in atelier("resume", "--help").stdout
    assert run.settings().training.steps == 5
    assert "dataset" in refusal("resume", run.path, "--training.steps", 7)
    assert run.settings().training.steps == 7


def test_help_names_every_setting() -> None:
    text = atelier("train", "--help").stdout
    for leaf in leaves(Settings):
        assert f"--{leaf.name}" in text
        assert " ".join(leaf.help.split()[:3]) in " ".join(text.split())


def test_every_command_has_help() -> None:
    for command in ("train", "resume", "status", "stop", "preview", "compose", "inspect",
                    "convert", "resize", "dataset", "doctor"):  # fmt: skip
        done = atelier(command, "--help")
        assert done.returncode == 0, command
        assert done.stdout.startswith("usage:")


def test_doctor_tells_the_device() -> None:
    assert "torch" in atelier("doctor").stdout
