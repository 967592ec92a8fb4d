"""How fast adapters are read, composed and reduced, against the plain way in the same run.

    python -m bench.adapters [--rank 16] [--json]

The adapter is random, for the attention of Stable Diffusion 1.5's UNet and text encoder (176
layers). Ratios above 1 mean that ours is faster; errors are relative, in the Frobenius norm.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from trainer.adapter.adapter import LowRank, load, save
from trainer.adapter.algebra import Cut, dense_spectrum
from trainer.adapter.compose import combine, compress
from trainer.adapter.header import Header, read_header
from trainer.model.bases import Family

WIDTHS = {"down_blocks.0": 320, "down_blocks.1": 640, "down_blocks.2": 1280, "mid_block": 1280,
          "up_blocks.1": 1280, "up_blocks.2": 640, "up_blocks.3": 320}  # fmt: skip
TEXT_WIDTH, TEXT_LAYERS = 768, 12
SAMPLED = 8  # layers on which the dense way is timed


def shapes() -> dict[str, tuple[int, int]]:
    """Weights [out, in] of SD 1.5's attention projections, by module path."""
    found = {}
    for block, width in WIDTHS.items():
        count = 1 if block == "mid_block" else 3 if block.startswith("up") else 2
        for index in range(count):
            inside = f"unet.{block}.attentions.{index}.transformer_blocks.0"
            for name in ("to_q", "to_k", "to_v", "to_out.0"):
                found[f"{inside}.attn1.{name}"] = (width, width)
                text = name in ("to_k", "to_v")
                found[f"{inside}.attn2.{name}"] = (width, TEXT_WIDTH if text else width)
    for index in range(TEXT_LAYERS):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            path = f"text_encoder.text_model.encoder.layers.{index}.self_attn.{name}"
            found[path] = (TEXT_WIDTH, TEXT_WIDTH)
    return found


def random_adapter(rank: int, seed: int) -> dict[str, LowRank]:
    generator = torch.Generator().manual_seed(seed)
    return {
        path: LowRank(
            torch.randn(rank, inputs, generator=generator) / inputs**0.5,
            torch.randn(outputs, rank, generator=generator) / 100,
            float(rank),
        )
        for path, (outputs, inputs) in shapes().items()
    }


def seconds(work: Callable[[], object], times: int = 5) -> float:
    """The shortest of several times, which is the least disturbed."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return min(taken)


def factors_apart(pairs: list[tuple[dict[str, LowRank], float]]) -> dict[str, LowRank]:
    """The mix that adds up- and down-factors separately, as several tools do."""
    (one, first), (two, second) = pairs
    return {
        path: LowRank(
            first * layer.down + second * two[path].down,
            first * layer.up + second * two[path].up,
            layer.alpha,
        )
        for path, layer in one.items()
    }


def error(made: dict[str, LowRank], pairs: list[tuple[dict[str, LowRank], float]]) -> float:
    """‖made − Σ wᵢΔWᵢ‖ / ‖Σ wᵢΔWᵢ‖, in fp64."""
    lost = whole = 0.0
    for path, layer in made.items():
        wanted = torch.stack([w * one[path].delta().double() for one, w in pairs]).sum(0)
        lost += float((layer.delta().double() - wanted).square().sum())
        whole += float(wanted.square().sum())
    return math.sqrt(lost / whole)


def measure(rank: int) -> dict[str, float]:
    """All figures, by what they are and their unit."""
    one, two = random_adapter(rank, 0), random_adapter(rank, 1)
    pairs = [(one, 0.7), (two, -0.4)]
    mix = combine([*pairs])
    sampled = dict(list(mix.items())[:: len(mix) // SAMPLED])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.safetensors"
        save(one, file, Header("a", Family.SD1))
        size = file.stat().st_size
        reading = seconds(lambda: load(file).adapter)
        plainly = seconds(lambda: {k: t.float() for k, t in load_file(file).items()})
        header = seconds(lambda: read_header(file))
        saving = seconds(lambda: save(one, file, Header("a", Family.SD1)))
    thin = seconds(lambda: compress(sampled, Cut(rank=rank)), times=3)
    dense = seconds(lambda: [dense_spectrum(layer.delta()) for layer in sampled.values()], times=3)
    return {
        "layers": len(one),
        "file MB": size / 1e6,
        "read ms": 1e3 * reading,
        "read, unchecked tensors alone: time / ours": plainly / reading,
        "read header ms": 1e3 * header,
        "save ms": 1e3 * saving,
        "combine ms": 1e3 * seconds(lambda: combine([*pairs])),
        "compress ms a layer": 1e3 * thin / len(sampled),
        "compress, whole matrices: time / ours": dense / thin,
        "error of combine": error(mix, pairs),
        "error of adding factors apart": error(factors_apart(pairs), pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    figures = measure(args.rank)
    if args.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:45} {value:.4g}")


if __name__ == "__main__":
    main()
