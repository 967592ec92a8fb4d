"""The loop that trains every part of the embedded base: by the clock, resumable, on several cores.

A part's budget is a number of minutes. How much of it is spent decides the learning rate, so a run
may be planned to end at a time of day, and a run that was cut off goes on where it was last saved.
Several processes each take a batch of their own and average their gradients.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes

from trainer.model.embedded.build_optimizer import optimizers_for

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Plan:
    """How one part is trained.

    The learning rate stays at `rate` for a share `flat` of the budget, then falls to zero along
    half a cosine. `loss` takes a generator, seeded by step and process, and the share of the budget
    that is spent; it returns a scalar and any numbers worth logging.
    """

    name: str
    module: nn.Module
    loss: Callable[[torch.Generator, float], tuple[Tensor, dict[str, float]]]
    minutes: float
    rate: float
    flat: float = 0.4
    ema: float = 0.998
    weight_decay: float = 0.01
    warm_up_steps: int = 60
    save_every_seconds: float = 120.0
    measure: Callable[[Any], dict[str, float]] | None = None


@dataclass
class Progress:
    """Where a run stands: optimizer steps done and seconds spent, over all its sittings."""

    step: int = 0
    seconds: float = 0.0
    running: dict[str, float] = field(default_factory=dict)


def rate_at(plan: Plan, share: float, step: int) -> float:
    """The learning rate once a share of the budget (0..1) is spent."""
    warm = min(1.0, (step + 1) / plan.warm_up_steps)
    fall = max(0.0, share - plan.flat) / (1.0 - plan.flat)
    return plan.rate * warm * 0.5 * (1.0 + math.cos(math.pi * min(1.0, fall)))


def train(plan: Plan, work: Path) -> None:
    """Trains a part to the end of its budget and leaves its averaged weights in the module."""
    path = work / f"{plan.name}.pt"
    parameters = [p for p in plan.module.parameters() if p.requires_grad]
    optimizers = optimizers_for(plan.module, plan.rate, plan.weight_decay)
    average = {name: p.detach().clone() for name, p in plan.module.named_parameters()}
    progress = Progress()
    if path.exists():
        saved = torch.load(path, map_location=DEVICE, weights_only=True)
        plan.module.load_state_dict(saved["module"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        average, progress = saved["average"], Progress(saved["step"], saved["seconds"])
    torch.set_flush_denormal(True)
    try:
        _run(plan, parameters, optimizers, average, progress, work)
    finally:
        torch.set_flush_denormal(False)  # it holds for the whole thread, not only for this
    with torch.no_grad():
        for name, parameter in plan.module.named_parameters():
            parameter.copy_(average[name])


def _run(
    plan: Plan,
    parameters: list[nn.Parameter],
    optimizers: list[torch.optim.Optimizer],
    average: dict[str, Tensor],
    progress: Progress,
    work: Path,
) -> None:
    budget, clock, saved_at = plan.minutes * 60, time.monotonic(), progress.seconds
    rank = _rank()
    while progress.seconds < budget:
        share = progress.seconds / budget
        for group in chain.from_iterable(optimizer.param_groups for optimizer in optimizers):
            group["lr"] = rate_at(plan, share, progress.step)
        generator = torch.Generator().manual_seed(progress.step * 64 + rank)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
            loss, numbers = plan.loss(generator, share)
        loss.backward()  # type: ignore[no-untyped-call]
        elapsed = _average_gradients(parameters, time.monotonic() - clock)
        clock += elapsed
        progress.seconds += elapsed
        progress.step += 1
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        _follow(plan, average, progress.step)
        if rank == 0:
            _log(plan, progress, {"loss": loss.item(), **numbers}, work)
            done = progress.seconds >= budget
            if done or progress.seconds - saved_at > plan.save_every_seconds:
                saved_at = progress.seconds
                save(
                    work / f"{plan.name}.pt",
                    {
                        "module": plan.module.state_dict(),
                        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                        "average": average,
                        "step": progress.step,
                        "seconds": progress.seconds,
                    },
                )
                _measure(plan, average, progress, work)


@torch.no_grad()
def _follow(plan: Plan, average: dict[str, Tensor], step: int) -> None:
    decay = min(plan.ema, (1 + step) / (10 + step))
    names, now = zip(*plan.module.named_parameters(), strict=True)
    torch._foreach_lerp_([average[name] for name in names], list(now), 1 - decay)


def _log(plan: Plan, progress: Progress, numbers: dict[str, float], work: Path) -> None:
    running = progress.running
    for name, value in numbers.items():
        running[name] = value if name not in running else 0.98 * running[name] + 0.02 * value
    if progress.step % 50 == 0:
        _write(plan, progress, running, work)


def _measure(plan: Plan, average: dict[str, Tensor], progress: Progress, work: Path) -> None:
    if plan.measure is None:
        return
    module = copy.deepcopy(plan.module)
    module.load_state_dict(average, strict=False)  # what is no parameter is no average
    with torch.no_grad():
        _write(plan, progress, plan.measure(module), work)


def _write(plan: Plan, progress: Progress, numbers: dict[str, float], work: Path) -> None:
    line = {
        "part": plan.name,
        "step": progress.step,
        "minutes": round(progress.seconds / 60, 3),
        **{name: round(value, 5) for name, value in numbers.items()},
    }
    print(json.dumps(line), flush=True)
    with (work / "losses.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")


def save(path: Path, state: object) -> None:
    """Writes a state all at once, from the first process: a reader sees the old file or the new."""
    if _rank():
        return
    partly = path.with_suffix(".partly")
    torch.save(state, partly)
    partly.replace(path)


def initialise(module: nn.Module, zero: Iterable[str]) -> None:
    """Orthogonal weights with gain one, zero biases, and zero where a name ends in one of `zero`.

    The stock initialisation is far too small for nets this narrow: with it the VAE had twice the
    loss after the same 150 steps. Ending every residual branch in zeros follows Fixup
    (arXiv 1901.09321).
    """
    zero = tuple(zero)
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            if name.endswith(zero):
                nn.init.zeros_(layer.weight)
            else:
                nn.init.orthogonal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _average_gradients(parameters: list[nn.Parameter], seconds: float) -> float:
    """Averages gradients over the processes; returns the seconds, averaged as well."""
    if not dist.is_initialized():
        return seconds
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([*(g.flatten() for g in gradients), torch.tensor([seconds], device=DEVICE)])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    offset = 0
    for gradient in gradients:
        gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
        offset += gradient.numel()
    return flat[-1].item()


def launch(stage: Callable[..., None], processes: int, work: Path, *arguments: Any) -> None:
    """Runs `stage(work, *arguments)` in this process, or in several that share gradients."""
    if processes == 1:
        stage(work, *arguments)
        return
    meeting = work / f"meeting-{os.getpid()}-{time.time_ns()}"
    start_processes(  # type: ignore[no-untyped-call]
        _join, (stage, processes, meeting, work, arguments), nprocs=processes, start_method="spawn"
    )
    meeting.unlink(missing_ok=True)


def _join(
    rank: int,
    stage: Callable[..., None],
    processes: int,
    meeting: Path,
    work: Path,
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=processes
    )
    stage(work, *arguments)
    dist.destroy_process_group()
