"""Checkpoints: whole or not there, none of them lost that is worth keeping."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainer import files, states
from trainer.fields import nest
from trainer.settings_file import parse
from trainer.training import checkpoint
from trainer.training.checkpoint import Checkpoint


def _new(step: int) -> Checkpoint:
    factors = {"a/down": torch.full((3, 2), float(step)), "a/up": torch.arange(6.0).view(2, 3)}
    optimizer = {
        "state": {0: {"step": torch.tensor(float(step)), "exp_avg": torch.rand(3, 2)}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "params": [0]}],
    }
    return Checkpoint(step, factors, optimizer, {}, {"pace": {}}, {"version": 1}, {"threads": 1})


def _adapter(content: bytes = b"adapter") -> Callable[[Path], None]:
    return lambda path: files.write_atomically(path, content)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_is_read_is_what_was_saved(tmp_path: Path) -> None:
    new = _new(7)
    file = checkpoint.save(tmp_path, new, _adapter())
    assert (file.name, file.read_bytes()) == ("step-000007.safetensors", b"adapter")
    read = checkpoint.newest(tmp_path)
    assert read is not None
    assert (read.step, read.settings, read.extra) == (7, {"version": 1}, {"pace": {}})
    assert all(torch.equal(read.factors[name], value) for name, value in new.factors.items())
    assert torch.equal(read.optimizer["state"][0]["exp_avg"], new.optimizer["state"][0]["exp_avg"])
    assert read.optimizer["param_groups"][0]["lr"] == 0.1
    state = json.loads((states.place_of(tmp_path, 7) / states.STATE).read_text())
    assert len(state["sha256"]) == len(state["adapter_sha256"]) == 64


@pytest.mark.parametrize("name", [states.TENSORS, states.STATE])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_one_that_is_not_whole_is_passed_over(tmp_path: Path, name: str, share: float) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, _new(step), _adapter())
    file = states.place_of(tmp_path, 2) / name
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    read, place = checkpoint.newest(tmp_path), states.newest(tmp_path)
    assert read is not None
    assert place is not None
    assert read.step == states.step_of(place) == 1
    checkpoint.drop_after(tmp_path, 1)
    assert _names(tmp_path) == {"step-000001.safetensors", "step-000001.state"}


def test_what_cannot_be_read_back_is_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, _new(1), _adapter())
    real = Path.write_bytes

    def forgetful(self: Path, data: bytes) -> int:
        return real(self, data[:-1] + b"?" if self.name == states.TENSORS else data)

    monkeypatch.setattr(Path, "write_bytes", forgetful)
    with pytest.raises(OSError, match="cannot be read back"):
        checkpoint.save(tmp_path, _new(2), _adapter())
    monkeypatch.undo()
    read = checkpoint.newest(tmp_path)
    assert read is not None
    assert read.step == 1
    assert not list(tmp_path.glob("*.partial"))


def test_nothing_is_begun_that_there_is_no_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nearly_full(folder: Path) -> object:
        return type("Usage", (), {"free": 70_000})

    monkeypatch.setattr(files.shutil, "disk_usage", nearly_full)
    checkpoint.save(tmp_path, _new(1), _adapter())
    big = Checkpoint(2, {"a": torch.zeros(9999)}, {"state": {}}, {}, {}, {}, {})
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, big, _adapter())
    assert _names(tmp_path) == {"step-000001.safetensors", "step-000001.state"}


def test_what_bits_depend_on_is_recorded_and_a_difference_is_said() -> None:
    wanted = parse(nest({"optimizer.name": "lion", "base.quantization": "nf4"}))
    before = checkpoint.environment(wanted, torch.device("cpu"))
    assert before["threads"] == torch.get_num_threads()
    assert {"torch", "diffusers", "lion-pytorch", "bitsandbytes", "instructions"} <= before.keys()
    assert checkpoint.differences(before, before) == ""
    now = before | {"threads": before["threads"] + 1, "torch": "0.0"}
    said = checkpoint.differences(before, now)
    assert f"threads was {before['threads']}, is {now['threads']}" in said
    assert f"torch was {torch.__version__}, is 0.0" in said


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in range(1, 8):
        checkpoint.save(tmp_path, _new(step), _adapter())
        checkpoint.rotate(tmp_path, keep=2, best=min(step, 3))
    kept = [states.step_of(place) for place in states.newest_first(tmp_path)]
    assert kept == [7, 6, 3]
    assert len(list(tmp_path.glob("*.safetensors"))) == 7
