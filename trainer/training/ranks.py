"""The processes that share a run, on several GPUs or machines.

`accelerate launch` and `torchrun` start one process for each and say so in its environment. All of
them do the same steps, each with its part of the images of every step, and add up the gradients; so
the result is that of one process, up to the order of sums. The first process alone owns the run
directory: it says, measures, saves and draws, and the others wait for it at their next meeting.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from trainer.errors import ProcessLost, RunFailed
from trainer.run import REQUESTS, Request
from trainer.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor, nn

# How long processes wait for each other: longer than the first one measures, saves and draws.
# One that is killed is noticed at once, when its connections close.
_PATIENCE = timedelta(hours=2)
_FAILED = 1 << len(REQUESTS)


@dataclass(frozen=True)
class Ranks:
    """One of `size` processes, number `rank` of them from 0."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def words(self, wanted: Settings) -> str:
        """How a step is shared, in a sentence."""
        passes, batch_size = wanted.training.gradient_accumulation, wanted.training.batch_size
        images = passes * batch_size
        equally = "equally" if images % self.size == 0 else "unequally: resume with fewer processes"
        return (
            f"{self.size} processes share the {images} images of each step ({passes} x "
            f"{batch_size}) {equally}."
        )

    def part(self, passes: int) -> Iterator[tuple[int, Callable[[int], range]]]:
        """This process's part of a step: numbers of passes, and for each which of its images, given
        how many it has. The parts of all processes are the whole step, each image once."""
        for number in range(passes):
            first = max(0, self.rank * passes - number * self.size)
            end = min(self.size, (self.rank + 1) * passes - number * self.size)
            if first < end:
                yield number, _span(first, end, self.size)

    def join(self) -> None:
        """Waits for the other processes, and takes a GPU of its own if there are GPUs."""
        if self.size == 1:
            return
        import torch

        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
            if torch.distributed.is_nccl_available():
                backend = "cpu:gloo,cuda:nccl"
        if not torch.distributed.is_initialized():
            with _told_if_lost():
                torch.distributed.init_process_group(backend, timeout=_PATIENCE)

    def share(self, content: bytes | None) -> bytes | None:
        """What the first process has, in all of them."""
        if self.size == 1:
            return content
        import torch
        from torch import distributed

        size = torch.tensor(-1 if content is None else len(content))
        with _told_if_lost():
            distributed.broadcast(size, 0)
            if size < 0:
                return None
            buffer = torch.empty(int(size), dtype=torch.uint8)
            if self.first and content:
                buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            distributed.broadcast(buffer, 0)
        return buffer.numpy().tobytes()

    def agree(self, asked: Iterable[Request]) -> frozenset[Request]:
        """What any process has been asked for, in all of them.

        Raises:
            RunFailed: if another process has failed.
        """
        asked = frozenset(asked)
        if self.size == 1:
            return asked
        bits = self._meet(sum(1 << REQUESTS.index(request) for request in asked))
        return frozenset(name for index, name in enumerate(REQUESTS) if bits >> index & 1)

    def fail(self) -> None:
        """Lets the other processes know that this one cannot go on, at their next meeting."""
        if self.size > 1:
            with suppress(RunFailed):
                self._meet(_FAILED)

    def any(self, flag: bool) -> bool:
        """Whether a flag is set in any process. Raises like `agree`."""
        return flag if self.size == 1 else bool(self._meet(int(flag)))

    def add_up(self, loss: Tensor, factors: Iterable[nn.Parameter]) -> Tensor:
        """Adds up the gradients of all processes, in place, and their losses; one message."""
        if self.size == 1:
            return loss
        import torch

        factors = [factor for factor in factors if factor.requires_grad]
        for factor in factors:
            if factor.grad is None:  # this process had no image of the step
                factor.grad = torch.zeros_like(factor)
        gradients = [factor.grad for factor in factors if factor.grad is not None]
        flat = torch.cat([loss.detach().reshape(1), *(g.reshape(-1) for g in gradients)])
        with _told_if_lost():
            torch.distributed.all_reduce(flat)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, summed in zip(gradients, torch.split(flat[1:], sizes), strict=True):
            gradient.copy_(summed.view_as(gradient))
        return flat[0]

    def _meet(self, bits: int) -> int:
        """The bits that are set in any process."""
        import torch

        mine = torch.zeros(len(REQUESTS) + 1, dtype=torch.uint8)
        for index in range(len(mine)):
            mine[index] = bits >> index & 1
        with _told_if_lost():
            torch.distributed.all_reduce(mine, torch.distributed.ReduceOp.MAX)
        if mine[-1]:
            raise RunFailed(
                "Another process of this run has failed.",
                "Its own message says why; mend that, then resume.",
            )
        return sum(int(bit) << index for index, bit in enumerate(mine))


ALONE = Ranks()


def here() -> Ranks:
    """This process's place, as its launcher has set it in the environment."""
    return Ranks(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


def shareable(wanted: Settings, size: int) -> Settings:
    """The settings with as many more passes a step as `size` processes need to have equal parts."""
    passes = wanted.training.gradient_accumulation
    while passes * wanted.training.batch_size % size:
        passes += 1
    training = wanted.training.model_copy(update={"gradient_accumulation": passes})
    return wanted.model_copy(update={"training": training})


def _span(first: int, end: int, of: int) -> Callable[[int], range]:
    return lambda images: range(images * first // of, images * end // of)


@contextmanager
def _told_if_lost() -> Iterator[None]:
    """Says in plain words that another process is gone."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLost(
            "Another process of this run has ended or cannot be reached "
            f"({str(error).splitlines()[0]}).",
            "Resume the run: it goes on from its newest checkpoint.",
        ) from error
