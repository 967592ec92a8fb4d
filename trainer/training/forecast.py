"""What a run will take, judged by its latest steps and by what measuring and drawing took."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from trainer import events
from trainer.settings import Settings
from trainer.training import memory

# Steps are watched until both are reached, the first step apart: it warms up. Or until this share
# of all steps is done, and again at each such share.
_FEWEST_STEPS, _FEWEST_SECONDS = 5, 10.0
_SHARE_OF_STEPS = 0.1
# A forecast is said again when it has changed by more than this.
_WORTH_SAYING = 0.15
# Above this share of the memory, the next allocation may be the one that fails.
_SAFE_SHARE = 0.95

Work = events.Validated | events.Sampled | events.CheckpointSaved


@dataclass
class Forecaster:
    """Watches the steps of an attempt; `clock` gives seconds.

    `took` has what each kind of work besides steps took when it was last done, by an earlier
    attempt perhaps. What has not been done yet, counts nothing.
    """

    wanted: Settings
    took: dict[type[Work], float] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    _made: float = field(init=False)
    _from: int | None = None
    _began: float = 0.0
    _aside: float = 0.0
    _said: float | None = None

    def __post_init__(self) -> None:
        self._made = self.clock()

    def heard(self, event: events.Event) -> None:
        """Learns what some work took, which is no part of a step."""
        if isinstance(event, events.Validated | events.Sampled | events.CheckpointSaved):
            self.took[type(event)] = event.seconds
            self._aside += event.seconds

    def step(self, done: int, device: torch.device) -> events.Forecast | None:
        """Step number `done` is done; the forecast, as soon as enough has been seen, and again if
        things go otherwise, as where another program wants the machine too."""
        if self._from is None:
            _wait_for(device)
            self._watch(done)
            return None
        steps = done - self._from
        if done == self._steps or not self._is_enough(steps):
            return None
        _wait_for(device)
        made = self._forecast(done, self._spent / steps, device)
        self._watch(done)
        if self._said is not None and abs(made.total_seconds / self._said - 1) < _WORTH_SAYING:
            return None
        self._said = made.total_seconds
        return made

    def _watch(self, done: int) -> None:
        self._from, self._began, self._aside = done, self.clock(), 0.0

    @property
    def _spent(self) -> float:
        """The seconds that the steps watched have taken."""
        return self.clock() - self._began - self._aside

    def _is_enough(self, steps: int) -> bool:
        if steps >= max(_FEWEST_STEPS, _SHARE_OF_STEPS * self._steps):
            return True
        first = self._said is None
        return first and steps >= _FEWEST_STEPS and self._spent >= _FEWEST_SECONDS

    def _forecast(self, done: int, per_step: float, device: torch.device) -> events.Forecast:
        wanted = self.wanted
        rest = per_step * (self._steps - done)
        for kind, every in (
            (events.Validated, wanted.validation.every_steps),
            (events.Sampled, wanted.samples.every_steps),
            (events.CheckpointSaved, wanted.training.checkpoint_every_steps),
        ):
            # What is due after this very step has not been done yet.
            rest += self.took.get(kind, 0.0) * times_due(done - 1, self._steps, every)
        peak, total = memory.peak_bytes(device), memory.total_bytes(device)
        return events.Forecast(
            seconds_per_step=per_step,
            total_seconds=self.clock() - self._made + rest,
            peak_memory=peak,
            memory=total,
            fits=None if peak is None or total is None else peak <= _SAFE_SHARE * total,
        )

    @property
    def _steps(self) -> int:
        return self.wanted.training.steps


def times_due(done: int, steps: int, every: int) -> int:
    """How often something is still to be done that is due every so many steps and at the end."""
    return steps // every - done // every + (steps % every > 0) if done < steps else 0


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
