"""Trains the VAE: 64×64 pixels to 16×16×4 latents and back."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from trainer.model.embedded.build_loop import DEVICE, Plan, initialise, save, train
from trainer.model.embedded.drawings import PROBED, Pixels, stored

SCALING_FACTOR = 0.18215
"""What Stable Diffusion's tools multiply latents by; folded into the weights, see `fold`."""

BATCH = 8 if DEVICE.type == "cpu" else 64


def new_vae() -> AutoencoderKL:
    """An untrained VAE."""
    vae = AutoencoderKL(
        block_out_channels=(24, 48, 96),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=2,
        norm_num_groups=4,
        latent_channels=4,
        mid_block_add_attention=False,
        sample_size=64,
        scaling_factor=SCALING_FACTOR,
    )
    initialise(vae, zero=("conv2",))
    return vae.to(DEVICE, memory_format=torch.channels_last)


def to_tensor(pixels: Pixels) -> Tensor:
    """Pictures as the VAE takes them: [N, 3, H, W], -1..1."""
    return torch.from_numpy(pixels).to(DEVICE).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def disguise(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Flips, and in a third of the batches strange colours: for what the world does not draw."""
    for axis in (2, 3):
        if torch.rand((), generator=generator) < 0.5:
            pictures = pictures.flip(axis)
    if torch.rand((), generator=generator) < 0.2:
        pictures = pictures[:, torch.randperm(3, generator=generator)]
    if torch.rand((), generator=generator) < 0.12:
        pictures = -pictures
    return pictures


def edges(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Differences between neighbouring pixels, down and across."""
    return pictures.diff(dim=2), pictures.diff(dim=3)


def distance(out: Tensor, pictures: Tensor) -> Tensor:
    """How far reconstructions are off: L1, squared error, and L1 on the edges.

    The squared error counts twelve times: it weighs the eyes and ink lines that L1 alone lets blur.
    """
    edge = sum(F.l1_loss(a, b) for a, b in zip(edges(out), edges(pictures), strict=True))
    return F.l1_loss(out, pictures) + 12 * F.mse_loss(out, pictures) + 0.25 * edge


class VaeLoss:
    """Reconstruction of whole pictures, and a little KL."""

    def __init__(self, vae: AutoencoderKL, work: Path) -> None:
        self.vae = vae
        self.scenes, self.doodles = stored(work, "scenes"), stored(work, "doodles")

    def __call__(self, generator: torch.Generator, share: float) -> tuple[Tensor, dict[str, float]]:
        pictures = disguise(self._pictures(BATCH, generator), generator)
        posterior = self.vae.encode(pictures).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(DEVICE)
        out = self.vae.decode(posterior.mean + posterior.std * noise).sample
        loss = distance(out, pictures) + 2e-4 * posterior.kl().mean() / posterior.mean[0].numel()
        return loss, {"l1": F.l1_loss(out, pictures).item()}

    def _pictures(self, batch: int, generator: torch.Generator) -> Tensor:
        doodles = int(batch * 0.12 + torch.rand((), generator=generator))
        of_scenes = torch.randint(0, len(self.scenes), (batch - doodles,), generator=generator)
        of_doodles = torch.randint(0, len(self.doodles), (doodles,), generator=generator)
        return torch.cat(
            [to_tensor(self.scenes[of_scenes.numpy()]), to_tensor(self.doodles[of_doodles.numpy()])]
        )


class DecoderLoss(VaeLoss):
    """The decoder alone, on whole pictures; half of the latents off as a denoiser's are."""

    def __call__(self, generator: torch.Generator, share: float) -> tuple[Tensor, dict[str, float]]:
        pictures = disguise(self._pictures(6, generator), generator)
        with torch.no_grad():
            latents = self.vae.encode(pictures).latent_dist.mode()
        wobble = 0.25 * torch.rand(6, 1, 1, 1, generator=generator) / SCALING_FACTOR
        wobble[::2] = 0.0
        latents += (wobble * torch.randn(latents.shape, generator=generator)).to(DEVICE)
        out = self.vae.decode(latents).sample
        return distance(out, pictures), {"l1": F.l1_loss(out, pictures).item()}


@torch.no_grad()
def fold(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Rescales the latents so that `latents * SCALING_FACTOR` has mean 0 and deviation 1 in each
    channel, by changing the convolutions on both sides of them; reconstructions stay as they are.
    """
    means = torch.cat([vae.encode(chunk).latent_dist.mean for chunk in torch.split(pictures, 50)])
    mean, deviation = means.mean((0, 2, 3)), means.std((0, 2, 3))
    gain = 1 / (deviation * SCALING_FACTOR)  # z' = (z - mean) * gain
    before, after = vae.quant_conv, vae.post_quant_conv
    assert isinstance(before, nn.Conv2d) and isinstance(after, nn.Conv2d)
    assert before.bias is not None and after.bias is not None
    before.weight[:4] *= gain[:, None, None, None]
    before.bias[:4] = (before.bias[:4] - mean) * gain
    before.bias[4:] += 2 * gain.log()
    after.bias += (after.weight[:, :, 0, 0] * mean).sum(1)
    after.weight /= gain[None, :, None, None]


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures: Tensor) -> float:
    """Peak signal-to-noise ratio of reconstructions in dB, over all pixels of all pictures."""
    outs = torch.cat(
        [
            vae.decode(vae.encode(chunk).latent_dist.mode()).sample.clamp(-1, 1)
            for chunk in torch.split(pictures, 50)
        ]
    )
    error = ((outs - pictures) / 2).square().mean()
    return float(-10 * error.log10())


def train_vae(work: Path, minutes: float) -> None:
    """Trains the VAE, further where the work folder has a `vae-start.pt`; leaves `vae-done.pt`."""
    torch.manual_seed(0)
    vae = new_vae()
    start, rate = work / "vae-start.pt", 2e-3
    if start.exists():
        vae.load_state_dict(torch.load(start, map_location=DEVICE, weights_only=True))
        rate = 7e-4
    probe = to_tensor(stored(work, "probe")[:PROBED])
    train(
        Plan(
            "vae",
            vae,
            VaeLoss(vae, work),
            minutes,
            rate=rate,
            flat=0.3,
            ema=0.998,
            measure=lambda averaged: {"psnr": psnr(averaged, probe)},
        ),
        work,
    )
    fold(vae, probe)
    print({"psnr": psnr(vae, probe)}, flush=True)
    save(work / "vae-done.pt", vae.state_dict())


def train_decoder(work: Path, minutes: float) -> None:
    """Trains the finished VAE's decoder further; the latents, and a UNet that makes them, stay."""
    vae = new_vae()
    vae.load_state_dict(torch.load(work / "vae-done.pt", map_location=DEVICE, weights_only=True))
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(False)
    plan = Plan("decoder", vae, DecoderLoss(vae, work), minutes, rate=7e-4, flat=0.1, ema=0.99)
    train(plan, work)
    print({"psnr": psnr(vae, to_tensor(stored(work, "probe")[:PROBED]))})
    save(work / "decoder-done.pt", vae.state_dict())
