"""An adapter in a model's weights acts as it does live, and the base comes back bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.adapters import random_adapter
from tests.images import apart
from trainer.adapter.attach import attach
from trainer.adapter.compose import combine
from trainer.adapter.factors import LowRank
from trainer.adapter.fused import fuse_model
from trainer.errors import AdapterError
from trainer.model.load import load
from trainer.model.stable_diffusion import BaseModel
from trainer.preview.render import PartStrength, Picture, render
from trainer.settings import Base

PICTURE = Picture("a cat", seed=2, steps=3, guidance=4.0, width=64, height=64)


@pytest.fixture(scope="module")
def model(small_base: Path) -> BaseModel:
    return load(Base(model=str(small_base), device="cpu"))


def state(model: BaseModel) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": tensor
        for part, root in model.parts.items()
        for name, tensor in root.state_dict().items()
    }


def test_fused_equals_live_and_restoring_is_bit_exact(model: BaseModel) -> None:
    before = {name: tensor.clone() for name, tensor in state(model).items()}
    plain = render(model, PICTURE)[0]
    one, two = (random_adapter(model.parts, seed) for seed in (1, 2))
    with attach(model.parts, {"x": one, "y": two}) as attachment:
        strengths = {"x": PartStrength(0.7, 0.7), "y": PartStrength(-0.4, -0.4)}
        live = render(model, PICTURE, attachment, strengths)[0]
    for _ in range(10):  # where subtraction would have drifted
        with fuse_model(model.parts, combine([(one, 0.7), (two, -0.4)])) as fused:
            changed = [name for name, tensor in state(model).items()
                       if not torch.equal(tensor, before[name])]  # fmt: skip
            drawn = render(model, PICTURE)[0]
        fused.restore()
    assert len(changed) == len(one)
    assert fused.report.gain == pytest.approx(1, abs=1e-5)
    assert apart(drawn, live) <= 1
    assert apart(drawn, plain) > 5
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())
    assert apart(render(model, PICTURE)[0], plain) == 0


def test_a_failure_leaves_the_model_as_it_was(model: BaseModel) -> None:
    before = dict(state(model))
    adapter = dict(random_adapter(model.parts))
    last = list(adapter)[-1]
    layer = adapter[last]
    foreign = adapter | {"unet.nowhere": layer}
    broken = adapter | {last: LowRank(layer.down, layer.up * float("inf"), layer.alpha)}
    for bad, says in ((foreign, "not in this base"), (broken, "not finite")):
        with pytest.raises(AdapterError, match=says):
            fuse_model(model.parts, bad)
    now = state(model)
    assert all(now[name].data_ptr() == tensor.data_ptr() for name, tensor in before.items())
