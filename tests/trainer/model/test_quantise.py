"""Bases packed to 8 and 4 bits by bitsandbytes: what they predict, and adapters beside them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.adapters import random_adapter
from tests.trainer.training.runs import new_run, same, tensors
from trainer import events
from trainer.adapter.attach import attach
from trainer.adapter.fuse import fuse
from trainer.adapter.fused import fuse_model
from trainer.errors import AdapterError, UserError
from trainer.model.load import load
from trainer.model.quantise import dense_weight, is_packed, parameters_of
from trainer.model.stable_diffusion import BaseModel
from trainer.run import State
from trainer.settings import Base, Quantization
from trainer.training.attempt import attempt

KINDS: tuple[Quantization, ...] = ("nf4", "int8")
ERRORS = {"nf4": 0.13, "int8": 0.02}  # relative, of a weight
NOISY, TIMESTEPS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), [10, 900]


def loaded(base: Path, how: Quantization | None) -> BaseModel:
    return load(Base(model=str(base), quantization=how, device="cpu"))


def predicted(model: BaseModel) -> torch.Tensor:
    return model.predict(NOISY, torch.tensor(TIMESTEPS), model.encode_prompts(["a cat", ""]))


@pytest.mark.parametrize("how", KINDS)
def test_the_linear_layers_of_the_transformers_are_packed(
    tiny_base: Path, how: Quantization
) -> None:
    plain, packed = loaded(tiny_base, None), loaded(tiny_base, how)
    layers = {path: module for path, module in plain.unet.named_modules()
              if isinstance(module, nn.Linear | nn.Conv2d)}  # fmt: skip
    for path, layer in layers.items():
        other = packed.unet.get_submodule(path)
        inside = isinstance(layer, nn.Linear) and ".attentions." in path
        assert is_packed(other.weight) is inside
        weight = dense_weight(other)
        assert weight.shape == layer.weight.shape
        apart = (weight - layer.weight).norm() / layer.weight.norm()
        assert apart < ERRORS[how]
    assert parameters_of(packed.unet) == parameters_of(plain.unet)
    before, after = (
        sum(
            weight.numel() * weight.element_size()
            for name, weight in model.unet.named_parameters()
            if "transformer_blocks" in name and weight.dim() > 1
        )
        for model in (plain, packed)
    )
    assert before / after == pytest.approx({"nf4": 8, "int8": 4}[how], rel=0.01)
    difference = predicted(packed) - predicted(plain)
    assert 0 < float(difference.norm() / predicted(plain).norm()) < 0.2
    assert torch.isfinite(difference).all()


@pytest.mark.parametrize("how", KINDS)
def test_an_adapter_beside_packed_layers_does_what_it_does_beside_plain_ones(
    tiny_base: Path, how: Quantization
) -> None:
    model = loaded(tiny_base, how)
    adapter = random_adapter(model.parts, size=0.1)
    before = predicted(model)
    path = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    layer = model.unet.get_submodule(path.removeprefix("unet."))
    x = torch.randn(2, 4, layer.in_features)
    expected = layer(x) + x @ adapter[path].delta().T
    with attach(model.parts, {"x": adapter}) as attachment:
        torch.testing.assert_close(attachment.layers[path](x), expected, rtol=1e-5, atol=1e-5)
        assert not torch.equal(predicted(model), before)
    assert torch.equal(predicted(model), before)


@pytest.mark.parametrize(("how", "kind"), [("nf4", "lora"), ("int8", "lora"), ("nf4", "dora")])
def test_it_trains_and_the_file_is_a_plain_one(
    tiny_base: Path, photos: Path, tmp_path: Path, how: Quantization, kind: str
) -> None:
    run = new_run(
        tmp_path / "run", tiny_base, photos, base__quantization=how, adapter__kind=kind,
        training__steps=4, training__batch_size=1, training__gradient_accumulation=1,
        training__checkpoint_every_steps=4, validation__every_steps=4, samples__prompts=(),
    )  # fmt: skip
    assert attempt(run) is State.FINISHED
    assert all(torch.isfinite(tensor).all() for tensor in tensors(run).values())
    ups = [
        tensor for key, tensor in tensors(run).items() if "lora_unet" in key and "lora_up" in key
    ]
    assert ups and all(tensor.abs().max() > 0 for tensor in ups)


def test_resuming_beside_packed_layers_is_exact(
    tiny_base: Path, photos: Path, tmp_path: Path
) -> None:
    wanted: dict[str, Any] = {"base__quantization": "int8", "samples__prompts": (),
                              "training__steps": 4, "validation__every_steps": 2}  # fmt: skip
    straight = new_run(tmp_path / "straight", tiny_base, photos, **wanted)
    attempt(straight)
    stopped = new_run(tmp_path / "stopped", tiny_base, photos, **wanted)

    def ask(event: events.Event) -> None:
        if isinstance(event, events.Validated) and event.step == 2:
            stopped.request("stop")

    assert attempt(stopped, ask) is State.STOPPED
    assert attempt(stopped) is State.FINISHED
    assert same(straight, stopped)


def test_fusing_into_packed_weights_is_refused(tiny_base: Path) -> None:
    model = loaded(tiny_base, "nf4")
    adapter = random_adapter({"unet": model.unet})
    path, layer = next(iter(adapter.items()))
    weight = model.unet.get_submodule(path.removeprefix("unet.")).weight
    with pytest.raises(AdapterError, match="is quantised"):
        fuse({path: weight}, {path: layer})
    with pytest.raises(AdapterError, match="is quantised"):
        fuse_model({"unet": model.unet}, adapter)
    with pytest.raises(AdapterError, match="is quantised"):
        fuse({path: torch.zeros(layer.shape, dtype=torch.int8)}, {path: layer})


def test_a_missing_library_is_named(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        loaded(tiny_base, "nf4")
