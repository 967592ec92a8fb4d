"""The subcommands between a base and adapters, run as a person runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import tiny
from tests.adapters import random_adapter
from tests.trainer.adapter import families
from trainer import cli
from trainer.adapter.adapter import load
from trainer.adapter.bake import bake
from trainer.adapter.compose import combine
from trainer.model.load import load as load_base
from trainer.settings import Base


def test_what_was_fused_is_extracted(
    small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = random_adapter(load_base(Base(model=str(small_base))).parts, rank=3)
    tuned = tmp_path / "tuned"
    bake(small_base, adapter, tuned)
    capsys.readouterr()
    command = ["extract", "--base", str(small_base), "--tuned", str(tuned), "--precision", "fp32"]
    out = tmp_path / "out.safetensors"
    assert cli.run([*command, "--rank", "3", "--output", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = load(out)
    assert found.family is not None and told["layers"] == len(found.layers) == len(adapter)
    for path, layer in combine([(adapter, 1.0)]).items():
        assert families.relative(found.adapter[path].delta(), layer.delta()) < 1e-4
    assert told["error"] < 1e-4

    assert cli.run([*command, "--energy", "0.5", "--output", str(out), "--json"]) == 0
    assert 0.3 < json.loads(capsys.readouterr().out)["error"] <= 0.5**0.5 + 1e-6
    assert cli.run([*command, "--rank", "1", "--output", str(out)]) == 0
    assert "rank 1, relative error" in capsys.readouterr().out


def test_models_that_do_not_differ_or_do_not_fit_are_told(
    small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--rank", "2", "--output", str(tmp_path / "x.safetensors")]
    assert cli.run(["extract", "--base", str(small_base), "--tuned", str(small_base), *out]) == 2
    assert "the two models are the same" in capsys.readouterr().err
    wide = tiny.stable_diffusion(tmp_path / "wide")
    assert cli.run(["extract", "--base", str(small_base), "--tuned", str(wide), *out]) == 2
    assert "The models differ at" in capsys.readouterr().err
    assert not (tmp_path / "x.safetensors").exists()
