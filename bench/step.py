"""A training step of Stable Diffusion 1.5's UNet, ours beside the plain diffusers + PEFT loop and
beside the bound: `python -m bench.step [--precision bf16 fp32] [--rounds 3] [--profile ours]`.

The UNet has its 860 million parameters, at random. All three take turns on the same frozen weights
in one process: 256x256, batch 1, one core; 512x512 if there is a GPU. Rank 8 on the attention
projections, AdamW, latents and text ready made for both.

ours    `Loop.step`, with everything that a run does in a step.
peft    the loop of diffusers' train_text_to_image_lora.py as people run it: `add_adapter`, autocast
        and adapter weights in bf16 where asked for, the loss read after each step, and malloc's own
        thresholds: those that glibc's dynamic ones arrive at, 32 and 64 MiB, since ours cannot be
        taken back to moving ones.
bound   the UNet without any adapter: forward, and backward to its input.

Prints medians of seconds by the clock and of the processor, which is the steadier of the two where
others are at work, the highest memory in use while a contender steps, and ratios.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor, nn

from trainer.adapter.attach import Attachment, attach_new, slots
from trainer.data.batches import Batch
from trainer.model.bases import Family
from trainer.model.stable_diffusion import Conditioning, StableDiffusion
from trainer.precision import DTYPES
from trainer.randomness import generator
from trainer.run import Run
from trainer.settings import Settings
from trainer.settings_file import parse
from trainer.training import memory, optimizers
from trainer.training.forecast import Forecaster
from trainer.training.loop import Loop
from trainer.training.objective import Objective
from trainer.training.prepare import Pace, Prepared
from trainer.training.ranks import ALONE
from trainer.training.reporter import Reporter

RANK, TOKENS, WIDTH = 8, 77, 768
TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]
STEPS = 3  # in a turn
NAMES = ("ours", "peft", "bound")


@dataclass
class Contender:
    """Something that does a step; `enter` and `leave` put its adapter on the UNet and take it off.
    Seconds are by the clock and of the processor, memory is in bytes."""

    enter: Callable[[], None]
    step: Callable[[int], None]
    leave: Callable[[], None]
    keeps_freed_memory: bool
    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    peak: int = 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--precision", nargs="*", choices=["bf16", "fp32"], default=["bf16", "fp32"]
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=512 if torch.cuda.is_available() else 256)
    parser.add_argument("--profile", choices=NAMES, help="also say where the time of this one goes")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for precision in chosen.precision:
        _measure(precision, chosen.side, chosen.rounds, device, chosen.profile)
        gc.collect()
    return 0


def _measure(precision: str, side: int, rounds: int, device: torch.device, profile: str) -> None:
    unet = _unet(DTYPES[precision], device)
    latents = torch.randn(1, 4, side // 8, side // 8)
    text = torch.randn(1, TOKENS, WIDTH).to(device, unet.dtype)
    contenders = {
        "ours": _ours(unet, latents, text, precision),
        "peft": _peft(unet, latents.to(device), text),
        "bound": _bound(unet, latents.to(device), text),
    }
    for turn in range(rounds):
        for name in NAMES:
            _take_turn(contenders[name], turn, device)
    print(f"\n{precision}, {side}x{side}, batch 1, {device}, medians of {rounds * STEPS}:")
    for name, one in contenders.items():
        print(
            f"  {name:6} {statistics.median(one.wall):8.3f} s by the clock "
            f"{statistics.median(one.processor):8.3f} s of the processor "
            f"{one.peak / 2**30:6.2f} GiB at most"
        )
    ours, peft, bound = (contenders[name] for name in NAMES)
    for other, name in ((peft, "peft"), (bound, "bound")):
        wall = statistics.median(ours.wall) / statistics.median(other.wall)
        processor = statistics.median(ours.processor) / statistics.median(other.processor)
        print(
            f"  ours / {name}: {wall:.2f} by the clock, {processor:.2f} of the processor, "
            f"{ours.peak / other.peak:.2f} of the memory"
        )
    if profile:
        _profile(contenders[profile])


def _take_turn(one: Contender, turn: int, device: torch.device) -> None:
    """Some steps in a row, after one that takes the memory which the others then find at hand."""
    _set_malloc(one.keeps_freed_memory)
    one.enter()
    for number in range(STEPS + 1):
        if number == 1:
            _forget_peak(device)
        wall, processor = time.perf_counter(), time.process_time()
        one.step(turn * (STEPS + 1) + number)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number:
            one.wall.append(time.perf_counter() - wall)
            one.processor.append(time.process_time() - processor)
    one.peak = max(one.peak, _peak(device))
    one.leave()


def _unet(dtype: torch.dtype, device: torch.device) -> Any:
    """Stable Diffusion 1.5's, frozen; its weights are slices of a few random numbers."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=WIDTH, attention_head_dim=8
        ).to(dtype)
    unet = unet.to_empty(device=device)
    some = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    for module in unet.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, nn.GroupNorm | nn.LayerNorm):
                parameter.data.fill_(float(name == "weight"))
            else:
                fan_in = parameter[0].numel() if parameter.dim() > 1 else 1 << 20
                flat = parameter.data.flatten()
                for first in range(0, len(flat), len(some)):
                    part = flat[first : first + len(some)]
                    torch.mul(some[: len(part)], fan_in**-0.5, out=part)
    return unet.requires_grad_(False).eval()


def _ours(unet: Any, latents: Tensor, text: Tensor, precision: str) -> Contender:
    wanted = parse(
        {
            "base": {"precision": precision},
            "dataset": {"caption_dropout": 0},
            "adapter": {"rank": RANK, "alpha": RANK, "text_encoder": False},
            "validation": {"every_steps": 1_000_000},
            "training": {"steps": 1000},
        }
    )
    alphas = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    model = StableDiffusion(
        family=Family.SD1,
        reference="random",
        place=Path(),
        unet=unet,
        vae=None,
        text_encoder=nn.Module(),
        tokenizer=None,
        prediction_type="epsilon",
        alphas_cumprod=alphas.alphas_cumprod.to(unet.device),
        scheduler_config={},
        device=unet.device,
        dtype=unet.dtype,
    )
    attachment = attach_new({"unet": unet}, wanted.adapter, generator(0, "factors"))
    loop = _loop(model, attachment, latents, text, wanted)
    attachment.detach()

    def step(number: int) -> None:
        loop.step(number)

    return Contender(attachment.attach, step, attachment.detach, keeps_freed_memory=True)


@dataclass(frozen=True)
class _OneBatch:
    """Stands for `Batches` whose latents are at hand."""

    latents: Tensor
    passes: int = 1

    def batch(self, step: int, micro: int) -> Batch:
        return Batch(self.latents, ("",), (Path("image.png"),))


@dataclass(frozen=True)
class _OneText:
    """Stands for `Conditions` whose captions are at hand."""

    hidden: Tensor

    def chunks(self, captions: Sequence[str]) -> int:
        return 1

    def read_to_learn(self, captions: Sequence[str], chunks: int) -> Conditioning:
        return Conditioning(self.hidden)


def _loop(
    model: StableDiffusion, attachment: Attachment, latents: Tensor, text: Tensor, wanted: Settings
) -> Loop:
    accelerator = Accelerator(cpu=model.device.type == "cpu", mixed_precision="no")
    batches: Any = _OneBatch(latents)
    conditions: Any = _OneText(text)
    nothing: Any = None  # a step measures and writes nothing
    prepared = Prepared(
        model=model,
        attachment=attachment,
        batches=batches,
        conditions=conditions,
        training=nothing,
        held_out=None,
        optimizer=accelerator.prepare(optimizers.build(wanted.optimizer, attachment)),
        accelerator=accelerator,
        average=None,
        pace=Pace(),
        unreadable={},
        folder=Path(),
        contents={},
    )
    objective = Objective(model, wanted, conditions)
    run = Run(Path(tempfile.gettempdir()) / "no run")
    reporter = Reporter(run, wanted.training.steps, Forecaster(wanted), mute=True)
    return Loop(run, wanted, prepared, objective, reporter, nothing, ALONE, frozenset)


def _peft(unet: Any, latents: Tensor, text: Tensor) -> Contender:
    bare = slots({"unet": unet})
    unet.add_adapter(
        LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=TARGETS)
    )
    for parameter in unet.parameters():  # as the script: only fp16 keeps its adapters in fp32
        if parameter.requires_grad:
            parameter.data = parameter.data.to(unet.dtype)
    with_lora = {path: getattr(slot.parent, slot.name) for path, slot in bare.items()}
    learned = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-4, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    noises = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    accelerator = Accelerator(cpu=latents.device.type == "cpu", mixed_precision="no")

    def enter() -> None:
        for path, slot in bare.items():
            slot.put(with_lora[path])

    def leave() -> None:
        for slot in bare.values():
            slot.put(slot.layer)

    def step(number: int) -> None:
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (1,), device=latents.device)
        noisy = noises.add_noise(latents, noise, timesteps).to(unet.dtype)
        with torch.autocast(latents.device.type, unet.dtype, unet.dtype == torch.bfloat16):
            prediction = unet(noisy, timesteps, text, return_dict=False)[0]
        loss = F.mse_loss(prediction.float(), noise.float(), reduction="mean")
        accelerator.gather(loss.repeat(1)).mean().item()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        loss.detach().item()

    leave()
    return Contender(enter, step, leave, keeps_freed_memory=False)


def _bound(unet: Any, latents: Tensor, text: Tensor) -> Contender:
    def step(number: int) -> None:
        noisy = latents.to(unet.dtype, copy=True).requires_grad_(True)
        timesteps = torch.full((1,), 500, device=latents.device)
        unet(noisy, timesteps, text, return_dict=False)[0].float().square().mean().backward()

    def nothing() -> None:
        return None

    return Contender(nothing, step, nothing, keeps_freed_memory=True)


def _set_malloc(keep: bool) -> None:
    """Our thresholds, or those that glibc's own come to; what is kept from before is given back."""
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    gc.collect()
    if keep:
        memory.keep_freed_memory()
    else:
        library.mallopt(-3, 32 << 20)
        library.mallopt(-1, 64 << 20)
    library.malloc_trim(0)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _profile(one: Contender) -> None:
    _set_malloc(one.keeps_freed_memory)
    one.enter()
    with torch.profiler.profile() as profile:
        one.step(1)
    one.leave()
    print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


if __name__ == "__main__":
    sys.exit(main())
