"""Trains the UNet: it takes noise off latents, told by a caption what they show."""

from __future__ import annotations

import copy
import hashlib
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from trainer.model.embedded.build_loop import DEVICE, Plan, initialise, train
from trainer.model.embedded.build_text import WIDTH, tokenise
from trainer.model.embedded.build_vae import SCALING_FACTOR, to_tensor
from trainer.model.embedded.drawings import (
    ATTRIBUTES,
    PROBE_SEED,
    PROBED,
    Pixels,
    captions_of,
    scene_number,
    stored,
)
from trainer.model.embedded.world import DEFAULT_MANNER

CHANNELS = (48, 96, 160)
EMPTY_SHARE = 0.1
EASY_SHARE = 0.8
"""How many of the first scenes are easy ones; none of the last are chosen for it."""


def new_unet() -> UNet2DConditionModel:
    """An untrained UNet: attention at 8×8 and 4×4, none at 16×16 where it costs most."""
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=CHANNELS,
        norm_num_groups=16,
        cross_attention_dim=WIDTH,
        attention_head_dim=tuple(max(1, c // 32) for c in CHANNELS),  # the number of heads
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )
    initialise(unet, zero=("conv2", "proj_out", "conv_out"))
    unet.set_attn_processor(AttnProcessor())  # fused attention is slower backwards on a CPU
    return unet.to(DEVICE)


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, with v-prediction."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


class Latents:
    """The latents of a store of pictures, encoded when first asked for and kept on disk.

    The file is named after the encoder: another one has latents of its own.
    """

    def __init__(self, vae: AutoencoderKL, pixels: Pixels, folder: Path) -> None:
        self.vae, self.pixels = vae, pixels
        encoder = hashlib.sha256()
        for tensor in (*vae.encoder.state_dict().values(), *vae.quant_conv.parameters()):
            encoder.update(tensor.detach().contiguous().cpu().numpy().tobytes())
        path = folder / f"latents-{encoder.hexdigest()[:12]}.npy"
        if not path.exists():
            partly = path.with_suffix(f".{os.getpid()}.npy")
            np.save(partly, np.full((len(pixels), 4, 16, 16), np.nan, np.float16))
            partly.replace(path)
        self.known = np.load(path, mmap_mode="r+")

    @torch.no_grad()
    def __call__(self, picks: NDArray[np.int64]) -> Tensor:
        """The latents of some pictures, scaled, [len(picks), 4, 16, 16]."""
        missing = picks[np.isnan(self.known[picks, 0, 0, 0])]
        if len(missing):
            encoded = self.vae.encode(to_tensor(self.pixels[missing])).latent_dist.mode()
            self.known[missing] = (encoded * SCALING_FACTOR).half().cpu().numpy()
        return torch.from_numpy(self.known[picks].astype(np.float32)).to(DEVICE)


def easy_scenes(truths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers of the scenes with one subject, in the middle, not small, in the usual manner."""
    names = list(ATTRIBUTES)
    usual = {"manner": DEFAULT_MANNER, "side": "", "second": "none"}
    easy = truths[:, names.index("size")] != ATTRIBUTES["size"].index("small")
    for name, value in usual.items():
        easy &= truths[:, names.index(name)] == ATTRIBUTES[name].index(value)
    return np.flatnonzero(easy)


class Denoising:
    """Plain v-prediction error at timesteps spread evenly over the batch; easy scenes first.

    v = sqrt(a) noise - sqrt(1 - a) latents, a the cumulative product of the schedule's alphas
    (arXiv 2202.00512). One caption in ten is empty, for classifier-free guidance.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        encoder: CLIPTextModel,
        latents: Latents,
        tokens: NDArray[np.int16],
        empty: Tensor,
        batch: int,
        easy: NDArray[np.int64],
        easy_share: float = EASY_SHARE,
    ) -> None:
        self.easy_share = easy_share
        self.unet, self.encoder, self.empty, self.batch = unet, encoder.eval(), empty, batch
        self.latents, self.tokens, self.easy = latents, tokens, easy
        self.alphas = new_scheduler().alphas_cumprod.to(DEVICE)

    def __call__(self, generator: torch.Generator, share: float) -> tuple[Tensor, dict[str, float]]:
        size = self.batch
        picks = torch.randint(0, len(self.tokens), (size,), generator=generator).numpy()
        easy = torch.randint(0, len(self.easy), (size,), generator=generator).numpy()
        plain = torch.rand(size, generator=generator).numpy() < self.easy_share * (1 - share)
        picks = np.where(plain, self.easy[easy], picks)
        which = torch.randint(0, self.tokens.shape[1], (size,), generator=generator).numpy()
        latents = self.latents(picks)
        tokens = torch.from_numpy(self.tokens[picks, which].astype(np.int64))
        tokens[torch.rand(size, generator=generator) < EMPTY_SHARE] = self.empty
        noise = torch.randn(latents.shape, generator=generator).to(DEVICE)
        steps = (torch.arange(size) + torch.rand(size, generator=generator)) / size
        return self.error(latents, tokens.to(DEVICE), noise, (steps * 1000).long().to(DEVICE)), {}

    def error(self, latents: Tensor, tokens: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """The mean squared error of predicted v; latents and noise [B, 4, 16, 16], steps [B]."""
        with torch.no_grad():
            context = self.encoder(tokens).last_hidden_state
        a = self.alphas[steps][:, None, None, None]
        noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
        target = a.sqrt() * noise - (1 - a).sqrt() * latents
        return F.mse_loss(self.unet(noisy, steps, context).sample, target)


@torch.no_grad()
def probe_error(task: Denoising, latents: Tensor, tokens: Tensor) -> float:
    """The error on scenes held out, at seven fixed timesteps with fixed noise."""
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(5)).to(DEVICE)
    errors = [
        task.error(latents, tokens, noise, torch.full((len(latents),), step, device=DEVICE)).item()
        for step in (50, 200, 350, 500, 650, 800, 950)
    ]
    return sum(errors) / len(errors)


def train_unet(
    work: Path,
    name: str,
    unet: UNet2DConditionModel,
    task: Denoising,
    tokenizer: CLIPTokenizer,
    minutes: float,
    rate: float,
    flat: float,
) -> None:
    """Trains the UNet for a budget of minutes; its averaged weights end up in it."""
    pictures = to_tensor(stored(work, "probe")[:PROBED])
    with torch.no_grad():
        latents = task.latents.vae.encode(pictures).latent_dist.mode() * SCALING_FACTOR
    scenes = [scene_number(i, PROBE_SEED) for i in range(PROBED)]
    captions = [captions_of(scene, i, PROBE_SEED)[0] for i, scene in enumerate(scenes)]
    tokens = tokenise(tokenizer, captions).to(DEVICE)

    def measure(averaged: UNet2DConditionModel) -> dict[str, float]:
        probe = copy.copy(task)
        probe.unet = averaged
        return {"held out": probe_error(probe, latents, tokens)}

    plan = Plan(name, unet, task, minutes, rate=rate, flat=flat, ema=0.9985, measure=measure)
    train(plan, work)
