"""Tiny bases of every family that keep to its rules, as folders and as single files.

All widths are multiples of 32 and heads are as the family has them, so that the shapes in a file
tell everything about it (see `trainer/model/configurations.py`). The names in the file are written
here the other way round than diffusers reads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from trainer.model.bases import Family
from trainer.model.clip_tokenizer import clip_tokenizer

WORDS = 1000
_TEXT = 32
_BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (32, 32, 64, 64),
    "cross_attention_dim": _TEXT,
}
_UNETS: dict[Family, dict[str, Any]] = {
    Family.SD1: _BLOCKS | {"attention_head_dim": 8},
    Family.SD2: _BLOCKS | {"attention_head_dim": (1, 1, 1, 1), "use_linear_projection": True},
    Family.SDXL: {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (32, 64, 128),
        "transformer_layers_per_block": (1, 2, 3),
        "attention_head_dim": (1, 1, 2),
        "cross_attention_dim": 2 * _TEXT,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 16,
        "projection_class_embeddings_input_dim": 6 * 16 + _TEXT,
    },
}
_SCALE = {Family.SD1: 0.18215, Family.SD2: 0.18215, Family.SDXL: 0.13025}
# How the names of the text encoders' tensors begin, and whether they are OpenCLIP's.
_TEXT_PLACES = {
    Family.SD1: {"text_encoder": ("cond_stage_model.transformer.text_model.", False)},
    Family.SD2: {"text_encoder": ("cond_stage_model.model.", True)},
    Family.SDXL: {
        "text_encoder": ("conditioner.embedders.0.transformer.text_model.", False),
        "text_encoder_2": ("conditioner.embedders.1.model.", True),
    },
}
SIZE = 64


def pipeline(family: Family, prediction_type: str = "epsilon", *, rescaled: bool = False) -> Any:
    """A random pipeline of the family for images of 64 pixels."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32,) * 4,
        layers_per_block=1,
        latent_channels=4,
        scaling_factor=_SCALE[family],
        sample_size=SIZE,
    )
    sample_size = SIZE // 8
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type=prediction_type,
        rescale_betas_zero_snr=rescaled, timestep_spacing="trailing" if rescaled else "leading",
    )  # fmt: skip
    parts = {
        "unet": UNet2DConditionModel(sample_size=sample_size, **_UNETS[family]).eval(),
        "vae": vae.eval(),
        "text_encoder": _text_encoder(gelu=family is Family.SD2),
        "tokenizer": clip_tokenizer(WORDS, "!" if family is Family.SD2 else "<|endoftext|>"),
        "scheduler": scheduler,
    }
    if family is Family.SDXL:
        parts |= {
            "text_encoder_2": _text_encoder(gelu=True, projected=True),
            "tokenizer_2": clip_tokenizer(WORDS, "!"),
        }
        return StableDiffusionXLPipeline(**parts)
    return StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def _text_encoder(*, gelu: bool, projected: bool = False) -> nn.Module:
    config = CLIPTextConfig(
        vocab_size=WORDS, hidden_size=_TEXT, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=1, projection_dim=_TEXT, hidden_act="gelu" if gelu else "quick_gelu",
        bos_token_id=WORDS - 2, eos_token_id=WORDS - 1, pad_token_id=WORDS - 1,
    )  # fmt: skip
    model: nn.Module = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)
    return model.eval()


def original(pipeline: Any, family: Family) -> dict[str, Tensor]:
    """The pipeline's tensors under the names of the original checkpoints."""
    unet = {f"model.diffusion_model.{_unet_name(name, pipeline.unet)}": tensor
            for name, tensor in pipeline.unet.state_dict().items()}  # fmt: skip
    vae = {f"first_stage_model.{name}": tensor for name, tensor in _vae(pipeline.vae).items()}
    text: dict[str, Tensor] = {}
    for part, (prefix, is_open_clip) in _TEXT_PLACES[family].items():
        state = getattr(pipeline, part).state_dict()
        state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
        named = _open_clip(state, spare=family is Family.SD2) if is_open_clip else state
        text |= {prefix + name: tensor for name, tensor in named.items()}
    return {name: tensor.clone().contiguous() for name, tensor in (unet | vae | text).items()}


def write(
    path: Path,
    pipeline: Any,
    family: Family,
    markers: tuple[str, ...] = (),
    dtype: torch.dtype | None = None,
    **metadata: str,
) -> Path:
    """Writes a single file; `markers` are empty tensors, metadata are `modelspec`'s."""
    tensors = original(pipeline, family) | {name: torch.tensor([]) for name in markers}
    if dtype is not None:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    told = {"resolution": f"{SIZE}x{SIZE}"} | metadata
    safetensors.torch.save_file(
        tensors, path, {f"modelspec.{name}": value for name, value in told.items()}
    )
    return path


_INNER = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
          "norm2": "out_layers.0", "conv2": "out_layers.3",
          "conv_shortcut": "skip_connection"}  # fmt: skip
_EDGES = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
          "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
          "add_embedding.linear_1": "label_emb.0.0",
          "add_embedding.linear_2": "label_emb.0.2"}  # fmt: skip


def _unet_name(name: str, unet: Any) -> str:
    layers = unet.config.layers_per_block + 1
    module, _, leaf = name.rpartition(".")
    if module in _EDGES:
        return f"{_EDGES[module]}.{leaf}"
    block, rest = name.split(".", 1)
    if block == "mid_block":
        kind, index, rest = rest.split(".", 2)
        place = f"middle_block.{1 if kind == 'attentions' else 2 * int(index)}"
    else:
        level, kind, index, rest = rest.split(".", 3)
        if kind == "downsamplers":
            return f"input_blocks.{layers * (int(level) + 1)}.0.op.{leaf}"
        if kind == "upsamplers":
            first = unet.config.up_block_types[int(level)] == "UpBlock2D"
            return f"output_blocks.{layers * (int(level) + 1) - 1}.{1 if first else 2}.conv.{leaf}"
        number = layers * int(level) + int(index)
        side = f"input_blocks.{number + 1}" if block == "down_blocks" else f"output_blocks.{number}"
        place = f"{side}.{1 if kind == 'attentions' else 0}"
    if kind == "resnets":
        inner, leaf = rest.rsplit(".", 1)
        rest = f"{_INNER[inner]}.{leaf}"
    return f"{place}.{rest}"


def _vae(vae: Any) -> dict[str, Tensor]:
    levels = len(vae.config.block_out_channels)
    named = {}
    for key, tensor in vae.state_dict().items():
        name = key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        if "mid_block.attentions.0" in name:
            for new, old in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"),
                             ("to_out.0", "proj_out")):  # fmt: skip
                name = name.replace(f"attentions.0.{new}.", f"attn_1.{old}.")
            tensor = tensor[..., None, None] if tensor.dim() == 2 else tensor
        name = name.replace("mid_block.", "mid.")
        name = name.replace("resnets.0", "block_1").replace("resnets.1", "block_2") \
            if "mid." in name else name.replace("resnets", "block")  # fmt: skip
        parts = name.split(".")
        if "up_blocks" in parts:
            parts[2] = str(levels - 1 - int(parts[2]))
        name = ".".join(parts).replace("down_blocks", "down").replace("up_blocks", "up")
        name = name.replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")
        named[name] = tensor
    return named


def _open_clip(state: dict[str, Tensor], *, spare: bool) -> dict[str, Tensor]:
    """OpenCLIP's names; a spare layer more, as SD 2's checkpoints have one that is not used."""
    layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.lay"))
    named = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "logit_scale": torch.tensor(4.6),
        "text_projection": state.get("text_projection.weight", torch.randn(_TEXT, _TEXT)).T,
    }
    for index in range(layers + spare):
        source = f"encoder.layers.{min(index, layers - 1)}."
        place = f"transformer.resblocks.{index}."
        for leaf in ("weight", "bias"):
            parts = [state[f"{source}self_attn.{part}_proj.{leaf}"] for part in "qkv"]
            named[f"{place}attn.in_proj_{leaf}"] = torch.cat(parts)
            for new, old in (("self_attn.out_proj", "attn.out_proj"), ("mlp.fc1", "mlp.c_fc"),
                             ("mlp.fc2", "mlp.c_proj"), ("layer_norm1", "ln_1"),
                             ("layer_norm2", "ln_2")):  # fmt: skip
                named[f"{place}{old}.{leaf}"] = state[f"{source}{new}.{leaf}"]
    return named
