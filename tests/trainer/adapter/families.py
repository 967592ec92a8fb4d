"""Tiny random models of every family with the true block structure, and adapters for them.

SDXL is as deep as the true one only where asked: PEFT takes half a minute for its 1,100 layers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests import tiny
from trainer.adapter.adapter import LowRank
from trainer.model.bases import Family

TEXT_WIDTH = 16
_COMMON = {"sample_size": 8, "norm_num_groups": 4, "layers_per_block": 2}
_UNETS: dict[Family, dict[str, Any]] = {
    Family.SD1: _COMMON
    | {
        "block_out_channels": (8, 8, 12, 12),
        "cross_attention_dim": TEXT_WIDTH,
        "attention_head_dim": 2,
    },
    Family.SD2: _COMMON
    | {
        "block_out_channels": (8, 8, 12, 12),
        "cross_attention_dim": TEXT_WIDTH + 8,
        "attention_head_dim": (2, 2, 3, 3),
        "use_linear_projection": True,
    },
    Family.SDXL: _COMMON
    | {
        "block_out_channels": (8, 8, 12),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2 * TEXT_WIDTH,
        "attention_head_dim": (2, 2, 3),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + TEXT_WIDTH,
    },
}
# Layers of the first text encoder, and of the second.
_TEXT_LAYERS = {Family.SD1: (12,), Family.SD2: (23,), Family.SDXL: (12, 32)}
_SHALLOW_XL = {"transformer_layers_per_block": (1, 1, 2)}


def unet(family: Family, *, deep: bool = False) -> UNet2DConditionModel:
    shallow = _SHALLOW_XL if family is Family.SDXL and not deep else {}
    return UNet2DConditionModel(**(_UNETS[family] | shallow))


def text_encoder(family: Family, *, second: bool = False, deep: bool = False) -> nn.Module:
    true_layers = _TEXT_LAYERS[family][int(second)]
    width = TEXT_WIDTH + 8 if family is Family.SD2 else TEXT_WIDTH
    config = CLIPTextConfig(
        vocab_size=600,
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=true_layers if deep or family is not Family.SDXL else 2,
        num_attention_heads=2,
        projection_dim=width,
        hidden_act="gelu" if family is Family.SD2 or second else "quick_gelu",
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    model: nn.Module = (CLIPTextModelWithProjection if second else CLIPTextModel)(config)
    return model.eval()


def pipeline(family: Family, folder: Path, *, deep: bool = False) -> Any:
    """A pipeline of the family; its words are those of single bytes."""
    torch.manual_seed(0)
    words = tiny.tokenizer(folder)
    parts = {
        "vae": tiny.vae(),
        "unet": unet(family, deep=deep).eval(),
        "text_encoder": text_encoder(family, deep=deep),
        "tokenizer": words,
        "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False),
    }
    if family is Family.SDXL:
        second = text_encoder(family, second=True, deep=deep)
        return StableDiffusionXLPipeline(**parts, text_encoder_2=second, tokenizer_2=words)
    return StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def layers(model: Any) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Every layer that an adapter can have, by its canonical path."""
    for part in ("unet", "text_encoder", "text_encoder_2"):
        root = getattr(model, part, None)
        for name, module in root.named_modules() if root is not None else ():
            if not isinstance(module, nn.Linear | nn.Conv2d) or name == "text_projection":
                continue
            if part != "unet" and not name.startswith("text_model."):
                name = f"text_model.{name}"
            yield f"{part}.{name}", module


@functools.cache
def layer_shapes(family: Family) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights of a UNet of the family, by module path; nothing is allocated."""
    with torch.device("meta"):
        model = unet(family, deep=True)
    return {
        f"unet.{name}": tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def low_rank(
    shape: tuple[int, ...], rank: int, alpha: float, generator: torch.Generator
) -> LowRank:
    """Random factors for a weight [out, in(, kh, kw)]."""
    down = torch.randn(rank, *shape[1:], generator=generator)
    up = 0.1 * torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator)
    return LowRank(down, up, alpha)


def random_adapter(
    shapes: Mapping[str, tuple[int, ...]],
    rank: int = 4,
    alpha: float = 2.0,
    seed: int = 0,
    *,
    mixed: bool = False,
) -> dict[str, LowRank]:
    """An adapter for all layers in `shapes`; with `mixed`, ranks and alphas differ by layer."""
    generator = torch.Generator().manual_seed(seed)
    return {
        path: low_rank(
            shape,
            rank + index % 3 if mixed else rank,
            alpha * (1, 3, 0.7)[index % 3] if mixed else alpha,
            generator,
        )
        for index, (path, shape) in enumerate(shapes.items())
    }


SMALL = {
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (16, 16),
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": (16, 12),
    "unet.mid_block.resnets.0.conv1": (8, 6, 3, 3),
    "unet.up_blocks.1.attentions.2.transformer_blocks.0.ff.net.0.proj": (20, 10),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (12, 12),
}


def deltas(adapter: Mapping[str, LowRank]) -> dict[str, Tensor]:
    return {path: layer.delta() for path, layer in adapter.items()}


def relative(one: Tensor, other: Tensor) -> float:
    """‖one − other‖ / ‖other‖."""
    return float((one - other).double().norm() / other.double().norm().clamp(min=1e-30))
