"""What an adapter costs a linear layer, forward and backward: `python -m bench.layers`.

The layers are those of Stable Diffusion 1.5's UNet at 256×256, rank 8, batch 1, on one core. Each
row gives milliseconds of processor time (medians, the candidates in turn), so that other programs
disturb little: the frozen layer alone, with our layer, the same written as separate operations, and
PEFT's layer.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from trainer.adapter.layers import LoraLinear, wrap
from trainer.training.memory import keep_freed_memory

RANK, ROUNDS = 8, 60
SIZES = ((1024, 320, 320), (256, 640, 640), (64, 1280, 1280))  # rows, in, out


class Separate(LoraLinear):
    """The one formula as autograd sees it when nobody helps."""

    def with_update(self, x: Tensor, gate: Tensor) -> Tensor:
        hidden = F.linear(x, self.down.to(x.dtype)) * gate
        return self.base(x) + F.linear(hidden, self.up.to(x.dtype))  # type: ignore[no-any-return]


def candidates(
    inputs: int, outputs: int, dtype: torch.dtype
) -> dict[str, Callable[[Tensor], Tensor]]:
    def base() -> nn.Linear:
        return nn.Linear(inputs, outputs).to(dtype).requires_grad_(False)

    def ours(kind: Callable[..., LoraLinear]) -> LoraLinear:
        down, up = torch.randn(RANK, inputs) / inputs**0.5, torch.randn(outputs, RANK) / 100
        layer = kind(base(), down, up, torch.ones(RANK))
        return layer.requires_grad_(True)

    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["0"])
    theirs = inject_adapter_in_model(config, nn.Sequential(base()))[0]
    trained = ours(wrap)  # type: ignore[arg-type]
    trained.base.requires_grad_(False)
    separate = ours(Separate)
    separate.base.requires_grad_(False)
    return {"frozen": base(), "ours": trained, "separate": separate, "PEFT": theirs}


def main() -> int:
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("dtype     rows    in   out   frozen     ours separate     PEFT   ours/PEFT")
    for dtype in (torch.float32, torch.bfloat16):
        for rows, inputs, outputs in SIZES:
            x = torch.randn(1, rows, inputs, dtype=dtype, requires_grad=True)
            dy = torch.randn(1, rows, outputs, dtype=dtype)
            layers = candidates(inputs, outputs, dtype)
            taken: dict[str, list[float]] = {name: [] for name in layers}
            for _ in range(ROUNDS):
                for name, layer in layers.items():
                    began = time.thread_time()
                    layer(x).backward(dy)
                    taken[name].append(1000 * (time.thread_time() - began))
            median = {name: statistics.median(times) for name, times in taken.items()}
            shown = " ".join(f"{time_:8.2f}" for time_ in median.values())
            name = str(dtype).removeprefix("torch.")
            print(f"{name:8} {rows:5} {inputs:5} {outputs:5} {shown} "
                  f"{median['ours'] / median['PEFT']:9.2f}")  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
