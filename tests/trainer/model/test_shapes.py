"""The outline of a base equals the model that its configuration makes, weight by weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from trainer.adapter.attach import slots
from trainer.adapter.layers import shape_of
from trainer.errors import BaseModelError
from trainer.model.bases import EMBEDDED, Family
from trainer.model.shapes import outline

HUB = {
    Family.SD1: "stable-diffusion-v1-5/stable-diffusion-v1-5",
    Family.SD2: "stabilityai/stable-diffusion-2-1",
    Family.SDXL: "stabilityai/stable-diffusion-xl-base-1.0",
}
COMMON: dict[str, Any] = {"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8}
UNETS: dict[Family, dict[str, Any]] = {
    Family.SD1: {**COMMON, "cross_attention_dim": 768},
    Family.SD2: {**COMMON, "cross_attention_dim": 1024, "use_linear_projection": True},
    Family.SDXL: {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


def _clip(width: int, inner: int, layers: int, second: bool = False) -> nn.Module:
    config = CLIPTextConfig(hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
                            num_attention_heads=width // 64, projection_dim=width)  # fmt: skip
    return CLIPTextModelWithProjection(config) if second else CLIPTextModel(config)


def _check(reference: str, parts: dict[str, nn.Module]) -> None:
    known = outline(reference)
    assert known is not None
    shapes = {path: shape for part in known.parts.values() for path, shape in part.shapes.items()}
    assert shapes == {path: shape_of(slot.layer) for path, slot in slots(parts).items()}
    counted = sum(p.numel() for part in parts.values() for p in part.parameters())
    assert known.parameters == counted


@pytest.mark.parametrize("family", list(Family), ids=str)
def test_released_models_are_known_before_they_are_downloaded(
    family: Family, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: None)
    with torch.device("meta"):
        parts: dict[str, nn.Module] = {"unet": UNet2DConditionModel(**UNETS[family])}
        if family is Family.SD2:
            parts["text_encoder"] = _clip(1024, 4096, 23)
        else:
            parts["text_encoder"] = _clip(768, 3072, 12)
        if family is Family.SDXL:
            parts["text_encoder_2"] = _clip(1280, 5120, 32, second=True)
    _check(HUB[family], parts)


def test_folders_are_known_from_their_configurations(tiny_base: Path, small_base: Path) -> None:
    for folder in (EMBEDDED, str(tiny_base), str(small_base)):
        place = Path(folder) if folder != EMBEDDED else Path("trainer/model/embedded/weights")
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(place / "unet"))
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(place / "text_encoder"))
        _check(folder, {"unet": unet, "text_encoder": text})


def test_what_is_not_known_is_told_apart_from_what_is_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: None)
    assert outline("someone/a-model") is None
    with pytest.raises(BaseModelError, match="no base"):
        outline("/nowhere/at/all")
