"""The gates of all layers; a batch with a strength for each image is its images one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.adapters import random_adapter
from trainer.adapter.attach import attach
from trainer.adapter.gates import Gates
from trainer.model.load import load
from trainer.settings import Base

SCALES = {"unet.a": {"x": [0.5, 0.5], "y": [2.0]}, "text.b": {"y": [3.0, 3.0, 3.0]}}
CPU = torch.device("cpu")


def test_a_gate_is_strength_times_scale() -> None:
    strengths, gates = Gates(SCALES).at(
        {"x": -1.5, "y": lambda path: 0.25 if path.startswith("unet") else 4.0}
    )
    assert strengths == {"unet.a": (-1.5, 0.25), "text.b": (4.0,)}
    assert torch.equal(gates(CPU)["unet.a"], torch.tensor([-0.75, -0.75, 0.5]))
    assert torch.equal(gates(CPU)["text.b"], torch.tensor([12.0, 12, 12]))


def test_one_strength_per_image_makes_all_gates_so() -> None:
    per_image = torch.tensor([0.0, 1.0])
    strengths, gates = Gates(SCALES).at({"x": per_image})
    assert strengths["unet.a"] == (per_image, 0.0)
    assert torch.equal(gates(CPU)["unet.a"], torch.tensor([[0, 0, 0], [0.5, 0.5, 0]]))
    assert torch.equal(gates(CPU)["text.b"], torch.zeros(2, 3))
    # Equal numbers and equal tensors are told apart by what they are.
    _, gates = Gates(SCALES).at({"x": torch.tensor([1.0, 1.0]), "y": torch.tensor([1.0, 2.0])})
    assert torch.equal(gates(CPU)["unet.a"], torch.tensor([[0.5, 0.5, 2], [0.5, 0.5, 4]]))


def test_setting_a_name_that_is_not_there_is_an_error(tiny_base: Path) -> None:
    model = load(Base(model=str(tiny_base), device="cpu"))
    with (
        attach(model.parts, {"x": random_adapter(model.parts)}) as attachment,
        pytest.raises(KeyError, match="not attached: y"),
    ):
        attachment.set({"y": 1.0})


@torch.no_grad()
def test_strengths_per_image_equal_separate_runs(tiny_base: Path) -> None:
    model = load(Base(model=str(tiny_base), device="cpu"))
    draws = torch.Generator().manual_seed(0)
    noisy = torch.randn(1, 4, 8, 8, generator=draws)
    one, two = torch.tensor([0.0, 0.5, 1.0, -1.0]), torch.tensor([1.0, 0.0, -0.5, 2.0])
    adapters = {name: random_adapter(model.parts, seed) for seed, name in enumerate("xy")}
    with attach(model.parts, adapters) as attachment:
        attachment.set({"x": one, "y": two})
        conditioning = model.encode_prompts(["a cat"] * 4)
        batch = model.predict(noisy.expand(4, -1, -1, -1), torch.tensor(500), conditioning)
        for index in range(4):
            attachment.set({"x": float(one[index]), "y": float(two[index])})
            alone = model.predict(noisy, torch.tensor(500), model.encode_prompts(["a cat"]))
            scale = alone.abs().max()
            torch.testing.assert_close(batch[index] / scale, alone[0] / scale, atol=1e-5, rtol=0)
