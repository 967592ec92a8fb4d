"""Folders that are no whole base: each is refused by name, and never filled up with chance."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from trainer.errors import BaseModelError
from trainer.model.load import load
from trainer.settings import Base

UNET = "unet/diffusion_pytorch_model.safetensors"


def change_tensors(
    file: str, change: Callable[[dict[str, torch.Tensor]], object]
) -> Callable[[Path], object]:
    def apply(base: Path) -> None:
        tensors = safetensors.torch.load_file(base / file)
        change(tensors)
        safetensors.torch.save_file(tensors, base / file, {"format": "pt"})

    return apply


def change_config(file: str, **values: object) -> Callable[[Path], object]:
    def apply(base: Path) -> None:
        config = json.loads((base / file).read_text()) | values
        (base / file).write_text(json.dumps(config))

    return apply


def cut(base: Path) -> None:
    (base / UNET).write_bytes((base / UNET).read_bytes()[:5000])


def empty_tokenizer(base: Path) -> None:
    for file in (base / "tokenizer").iterdir():
        file.unlink()


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no-tokenizer": (lambda base: shutil.rmtree(base / "tokenizer"), "has no tokenizer"),
    "empty-tokenizer": (empty_tokenizer, "has no tokenizer, or an empty one"),
    "no-vae": (lambda base: shutil.rmtree(base / "vae"), "has no vae"),
    "cut": (cut, "The unet of .* cannot be loaded"),
    "unet-tensor-lost": (
        change_tensors(UNET, lambda tensors: tensors.pop("conv_in.bias")),
        "The unet of .* lacks 1 of its tensors, such as conv_in.bias",
    ),
    "text-tensor-lost": (
        change_tensors("text_encoder/model.safetensors", lambda tensors: tensors.popitem()),
        "The text_encoder of .* lacks 1 of its tensors",
    ),
    "not-finite": (
        change_tensors(UNET, lambda tensors: tensors["conv_in.bias"].fill_(float("nan"))),
        "The unet of .* has numbers in conv_in.bias that are not finite",
    ),
    "odd-width": (change_config("text_encoder/config.json", hidden_size=33), "text_encoder of"),
    "wild-schedule": (
        change_config("scheduler/scheduler_config.json", beta_schedule="wild"),
        "gives no schedule of noise: wild is not implemented",
    ),
    "no-schedule": (
        lambda base: (base / "scheduler/scheduler_config.json").write_text("{}"),
        "gives no schedule of noise: it has no beta_start",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named(name: str, small_base: Path, tmp_path: Path) -> None:
    breaking, words = BROKEN[name]
    folder = shutil.copytree(small_base, tmp_path / "base")
    breaking(folder)
    with pytest.raises(BaseModelError, match=words):
        load(Base(model=str(folder), device="cpu"))
