"""What strengths cost on Stable Diffusion 1.5's architecture, each figure a ratio in one run.

    python -m bench.strength [--size 256] [--rounds 5] [--rank 16] [--json]

The weights are random, which changes no time. Everything runs on one thread, and its processor time
is what counts, so that other programs disturb little. What is compared is timed in alternating
rounds; a ratio is the median of the rounds' ratios, and below 1 ours is faster. A step is one pass
through the UNet without guidance; adapters are on all attention layers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from bench.adapters import random_adapter
from trainer.adapter.adapter import load, save
from trainer.adapter.attach import Attachment, attach
from trainer.adapter.fused import fuse_model
from trainer.adapter.header import Header
from trainer.model.bases import Family

STRIP = (0.0, 0.25, 0.5, 0.75, 1.0)
TARGETS = {
    "setting 4 strengths, ms": 5.0,
    "step, one adapter / base": 1.06,
    "step, four adapters / base": 1.12,
    "step, fused / base": 1.02,
    "reading and attaching, ms": 150.0,
}
_UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}


def build() -> dict[str, nn.Module]:
    """UNet and text encoder of SD 1.5 with cheap random weights, in fp32."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**_UNET)
        text = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                num_attention_heads=12,
            )
        )  # fmt: skip
    noise = torch.randn(40_000_000, generator=torch.Generator().manual_seed(0)) * 0.02
    for root in (unet, text):
        root.to_empty(device="cpu").requires_grad_(False).eval()
        for parameter in root.parameters():
            parameter.copy_(noise[: parameter.numel()].view_as(parameter))
    return {"unet": unet, "text_encoder": text}


def sharing(unet: nn.Module) -> Any:
    """Another UNet on the same weights."""
    with torch.device("meta"):
        other = UNet2DConditionModel(**_UNET)
    other.load_state_dict(unet.state_dict(), assign=True)
    return other.requires_grad_(False).eval()


def alternating(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each work in each round, after one round to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            began = time.process_time()
            work()
            if number:
                taken[name].append(time.process_time() - began)
    return taken


def ratio(taken: Mapping[str, list[float]], one: str, other: str) -> float:
    return median(a / b for a, b in zip(taken[one], taken[other], strict=True))


class Bench:
    """The models and files that are timed. Every attachment is detached until it is used."""

    def __init__(self, size: int, rank: int, folder: Path) -> None:
        self.parts = build()
        self.files = [folder / f"{seed}.safetensors" for seed in range(4)]
        for seed, file in enumerate(self.files):
            save(random_adapter(rank, seed), file, Header("x", Family.SD1))
        self.latents = torch.randn(1, 4, size // 8, size // 8)
        self.text = torch.randn(1, 77, 768)

    def attached(self, count: int) -> Attachment:
        return attach(
            self.parts, {str(number): load(self.files[number]).adapter for number in range(count)}
        )

    def step(self, unet: Any, images: int = 1) -> Tensor:
        """One denoising step for so many images."""
        latents, text = self.latents.expand(images, -1, -1, -1), self.text.expand(images, -1, -1)
        return unet(latents, 500, text).sample  # type: ignore[no-any-return]

    def fused(self) -> Any:
        """A UNet with the first adapter in its weights."""
        unet = sharing(self.parts["unet"])
        adapter = load(self.files[0]).adapter
        fuse_model(
            {"unet": unet}, {p: layer for p, layer in adapter.items() if p.startswith("unet.")}
        )
        return unet

    def by_peft(self) -> Any:
        """A UNet with the first adapter put on by diffusers and PEFT."""
        unet = sharing(self.parts["unet"])
        unet.load_lora_adapter(_peft_form(self.files[0]), prefix=None, adapter_name="x")
        return unet


def _peft_form(file: Path) -> dict[str, Tensor]:
    """The UNet's factors under PEFT's names; alpha is the rank in the bench's files."""
    from trainer.adapter.keys import split

    found = {}
    for key, tensor in load_file(file).items():
        path, role = split(key) or ("", "")
        part, _, name = path.partition(".")
        if part == "unet" and role in ("down", "up"):
            letter = {"down": "A", "up": "B"}[role]
            found[f"{name}.lora_{letter}.weight"] = tensor.float()
    return found


@torch.no_grad()
def measure(size: int, rounds: int, rank: int) -> dict[str, float]:
    """All figures, by what they are and their unit."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(size, rank, Path(folder))
        return {
            **attaching(bench, rounds),
            **steps(bench, rounds),
            **strips(bench, max(1, rounds // 2)),
        }


def attaching(bench: Bench, rounds: int) -> dict[str, float]:
    """Milliseconds of reading, attaching and setting."""

    def whole() -> None:
        bench.attached(1).detach()

    adapter = load(bench.files[0]).adapter
    works = {
        "whole": whole,
        "reading": lambda: load(bench.files[0]).adapter,
        "attaching": lambda: attach(bench.parts, {"x": adapter}).detach(),
    }
    taken = alternating(works, 2 * rounds)
    figures = {
        "reading and attaching, ms": 1e3 * median(taken["whole"]),
        "reading alone, ms": 1e3 * median(taken["reading"]),
        "attaching alone, ms": 1e3 * median(taken["attaching"]),
    }
    with bench.attached(4) as attachment:
        setting = alternating(
            {
                "numbers": lambda: attachment.set({str(n): 0.1 * n + 0.1 for n in range(4)}),
                "a strip": lambda: attachment.set({str(n): torch.tensor(STRIP) for n in range(4)}),
            },
            10 * rounds,
        )
    figures["setting 4 strengths, ms"] = 1e3 * median(setting["numbers"])
    figures["setting 4 strengths of a strip, ms"] = 1e3 * median(setting["a strip"])
    return figures


def steps(bench: Bench, rounds: int) -> dict[str, float]:
    """A step with adapters against one without."""
    unet, fused = bench.parts["unet"], bench.fused()
    one = bench.attached(1)
    one.detach()
    four = bench.attached(4)
    four.detach()

    def live(attachment: Attachment) -> None:
        with _on(attachment):
            bench.step(unet)

    taken = alternating(
        {
            "base": lambda: bench.step(unet),
            "one": partial(live, one),
            "four": partial(live, four),
            "fused": lambda: bench.step(fused),
        },
        rounds,
    )
    return {
        "step of the base, s": median(taken["base"]),
        "step, one adapter / base": ratio(taken, "one", "base"),
        "step, four adapters / base": ratio(taken, "four", "base"),
        "step, fused / base": ratio(taken, "fused", "base"),
    }


def strips(bench: Bench, rounds: int) -> dict[str, float]:
    """A step of five strengths: one batch, against five runs, and against PEFT's five runs."""
    unet, peft = bench.parts["unet"], bench.by_peft()
    ours = bench.attached(1)

    def together() -> list[Tensor]:
        ours.set({"0": torch.tensor(STRIP)})
        return list(bench.step(unet, len(STRIP)))

    def apart() -> list[Tensor]:
        found = []
        for strength in STRIP:
            ours.set({"0": strength})
            found.append(bench.step(unet)[0])
        return found

    def theirs() -> list[Tensor]:
        found = []
        for strength in STRIP:
            peft.set_adapters("x", strength)
            found.append(bench.step(peft)[0])
        return found

    with ours:
        batch, single, other = together(), apart(), theirs()
        taken = alternating({"batch": together, "five": apart, "PEFT": theirs}, rounds)
    return {
        "strip of 5, one batch / five runs": ratio(taken, "batch", "five"),
        "strip of 5, one batch / PEFT's five runs": ratio(taken, "batch", "PEFT"),
        "five runs / PEFT's five runs": ratio(taken, "five", "PEFT"),
        "strip of 5, largest difference from five runs": _difference(batch, single),
        "strip of 5, largest difference from PEFT": _difference(batch, other),
    }


def _on(attachment: Attachment) -> Attachment:
    attachment.attach()
    return attachment


def _difference(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest difference of any value, relative to the largest value."""
    largest = max(float(a.abs().max()) for a in one)
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True)) / largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=256, help="pixels of a side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    figures = measure(args.size, args.rounds, args.rank)
    if args.json:
        print(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        target = f"  (target {TARGETS[name]:g})" if name in TARGETS else ""
        print(f"{name:48} {value:.4g}{target}")


if __name__ == "__main__":
    main()
