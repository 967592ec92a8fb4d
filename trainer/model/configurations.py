"""diffusers' configurations of a single-file checkpoint, from the shapes of its tensors. No torch.

Levels, widths, layers and vocabulary are in the shapes. What is not follows the rule of the family:
SD 1 has eight attention heads at every level, SD 2 and SDXL have heads of 64 channels, text
encoders too, and groups of normalisation are 32. Models too narrow for that, as tests make them,
have the largest number of heads or groups that fits (at least one head).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from trainer.model.bases import Family
from trainer.model.other_files import UNET
from trainer.model.single_file import VAE, SingleFile

Shapes = Mapping[str, tuple[int, ...]]
Config = dict[str, Any]

_HEAD_WIDTH = 64
_SD1_HEADS = 8
_GROUPS = 32
_CLIP_WORDS = 49408
_LATENT_SCALE = {Family.SD1: 0.18215, Family.SD2: 0.18215, Family.SDXL: 0.13025}


def scheduler_config(file: SingleFile) -> Config:
    """The noise schedule of Stable Diffusion, with what the file says of itself."""
    return {
        "_class_name": "DDIMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": file.prediction_type,
        "rescale_betas_zero_snr": file.zero_terminal_snr,
        "timestep_spacing": "trailing" if file.zero_terminal_snr else "leading",
    }


def unet_config(file: SingleFile) -> Config:
    """The UNet's configuration.

    Raises:
        KeyError: if a tensor that every UNet has is not there.
    """
    shapes = _part(file.shapes, UNET)
    levels = _levels(shapes)
    widths = [shapes[f"input_blocks.{blocks[0]}.0.in_layers.2.weight"][0] for blocks in levels]
    depths = [_depth(shapes, f"input_blocks.{blocks[0]}.1.") for blocks in levels]
    middle = _depth(shapes, "middle_block.1.")
    text = next(shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight"))
    heads: int | list[int] = math.gcd(_SD1_HEADS, *widths)
    if file.family is not Family.SD1:
        heads = [max(1, width // _HEAD_WIDTH) for width in widths]
    config = {
        "sample_size": file.size // _downscale(file),
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": widths,
        "layers_per_block": len(levels[0]),
        "down_block_types": ["CrossAttnDownBlock2D" if d else "DownBlock2D" for d in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if d else "UpBlock2D" for d in reversed(depths)],
        # A level without attention has a depth all the same: the last one's is the middle's.
        "transformer_layers_per_block": [*(d or 1 for d in depths[:-1]), depths[-1] or middle],
        "cross_attention_dim": text,
        "attention_head_dim": heads,
        "norm_num_groups": math.gcd(_GROUPS, *widths),
        "use_linear_projection": len(shapes["middle_block.1.proj_in.weight"]) == 2,
    }
    if file.family is Family.SDXL:
        pooled = file.shapes[f"{file.prefixes()['text_encoder_2']}text_projection"][1]
        whole = shapes["label_emb.0.0.weight"][1]
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": (whole - pooled) // 6,  # of six sizes and places
            "projection_class_embeddings_input_dim": whole,
        }
    return config


def vae_config(file: SingleFile) -> Config:
    """The autoencoder's configuration. Raises KeyError as `unet_config` does."""
    shapes = _part(file.shapes, VAE)
    levels = _count(shapes, "encoder.down.")
    widths = [shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in range(levels)]
    return {
        "sample_size": file.size,
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": _count(shapes, "encoder.down.0.block."),
        "norm_num_groups": math.gcd(_GROUPS, *widths),
        "scaling_factor": _LATENT_SCALE[file.family],
    }


def text_config(file: SingleFile, part: str) -> Config:
    """A text encoder's configuration. Raises KeyError as `unet_config` does."""
    prefix = file.prefixes()[part]
    shapes = _part(file.shapes, prefix)
    if is_open_clip(prefix):
        words, width = shapes["token_embedding.weight"]
        inner = shapes["transformer.resblocks.0.mlp.c_fc.weight"][0]
        layers = _count(shapes, "transformer.resblocks.")
        places = shapes["positional_embedding"][0]
    else:
        shapes = {name.removeprefix("text_model."): shape for name, shape in shapes.items()}
        words, width = shapes["embeddings.token_embedding.weight"]
        inner = shapes["encoder.layers.0.mlp.fc1.weight"][0]
        layers = _count(shapes, "encoder.layers.")
        places = shapes["embeddings.position_embedding.weight"][0]
    end = min(words, _CLIP_WORDS) - 1  # embeddings may have been added behind it
    return {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": inner,
        # SD 2 reads the last layer but one, so diffusers leaves the last one out.
        "num_hidden_layers": layers - 1 if file.family is Family.SD2 else layers,
        "num_attention_heads": max(1, width // _HEAD_WIDTH),
        "max_position_embeddings": places,
        "hidden_act": "gelu" if is_open_clip(prefix) else "quick_gelu",
        "projection_dim": shapes["text_projection"][1] if "text_projection" in shapes else width,
        "bos_token_id": end - 1,
        "eos_token_id": end,
        "pad_token_id": end,
    }


def is_open_clip(prefix: str) -> bool:
    """Whether a text encoder's tensors are named as OpenCLIP names them, else as transformers."""
    return prefix.endswith(".model.")


def _part(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    return {
        name.removeprefix(prefix): shape for name, shape in shapes.items()
        if name.startswith(prefix)
    }  # fmt: skip


def _levels(shapes: Shapes) -> list[list[int]]:
    """The input blocks of each level, without those that only halve the image."""
    levels: list[list[int]] = [[]]
    for index in range(1, _count(shapes, "input_blocks.")):
        if f"input_blocks.{index}.0.op.weight" in shapes:
            levels.append([])
        else:
            levels[-1].append(index)
    return levels


def _depth(shapes: Shapes, prefix: str) -> int:
    """Transformer blocks of one attention layer; 0 where there is none."""
    return _count(shapes, f"{prefix}transformer_blocks.")


def _count(shapes: Shapes, prefix: str) -> int:
    """How many numbers follow a prefix."""
    return len(
        {name[len(prefix) :].partition(".")[0] for name in shapes if name.startswith(prefix)}
    )


def _downscale(file: SingleFile) -> int:
    return 2 ** max(0, _count(_part(file.shapes, VAE), "encoder.down.") - 1)  # type: ignore[no-any-return]
