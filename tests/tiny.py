"""Tiny random bases with the true block structure of their families, made from configurations."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WIDTH = 32


def unet(**changes: object) -> UNet2DConditionModel:
    """SD 1.5's UNet with four levels of two layers, 8 to 32 channels wide."""
    config = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16, 32, 32),
        "layers_per_block": 2,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**(config | changes))


def small_unet() -> UNet2DConditionModel:
    """Two levels of one layer, for tests that train often."""
    return unet(
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


def vae() -> AutoencoderKL:
    """SD's autoencoder, which shrinks each side by 8."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
    )


def text_encoder() -> CLIPTextModel:
    """CLIP's text encoder with two layers."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=600,
            hidden_size=WIDTH,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


def tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's tokenizer that knows single bytes only."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<|startoftext|>", "<|endoftext|>", *alphabet, *(f"{c}</w>" for c in alphabet)]
    vocabulary = {word: index for index, word in enumerate(words)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def stable_diffusion(
    folder: Path,
    prediction_type: str = "epsilon",
    small: bool = False,
    seed: int = 0,
    widths: tuple[int, ...] = (),
) -> Path:
    """Writes an SD 1.x base in the diffusers layout, its levels as wide as is said; returns its
    folder."""
    torch.manual_seed(seed)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(folder / "words"),
        unet=small_unet() if small else unet(**({"block_out_channels": widths} if widths else {})),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder
