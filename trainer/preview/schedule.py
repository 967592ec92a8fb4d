"""How strongly an adapter acts at each denoising step. Plain arithmetic, no torch."""

from __future__ import annotations

import math
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Schedule(BaseModel):
    """A factor on an adapter's strength in the UNet, as a function of the denoising step.

    From `begin` to `end`, as shares of the steps taken, it goes evenly from `first` to `last`;
    before and after it is 0. The early steps, at high noise, decide the composition, the late ones
    the detail: `Schedule(end=0.5)` is high noise only, `Schedule(begin=0.5)` low noise only,
    `Schedule(first=0)` fades in over all steps. The default is the constant 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    begin: float = Field(default=0.0, ge=0, le=1)
    end: float = Field(default=1.0, ge=0, le=1)
    first: float = Field(default=1.0, ge=-4, le=4)
    last: float = Field(default=1.0, ge=-4, le=4)

    @model_validator(mode="after")
    def _begins_before_it_ends(self) -> Self:
        if self.begin >= self.end:
            raise ValueError(f"begins at {self.begin:g}, which is not before its end {self.end:g}")
        return self

    def factor(self, step: int, steps: int) -> float:
        """The factor at step 0 ≤ `step` < `steps`. A step belongs to the span that its middle is
        in, so that `end=0.5` and `begin=0.5` share the steps out between them."""
        first_inside = math.ceil(self.begin * steps - 0.5)
        last_inside = math.ceil(self.end * steps - 0.5) - 1
        if self.end == 1:
            last_inside = steps - 1
        if not first_inside <= step <= last_inside:
            return 0.0
        if self.first == self.last or first_inside == last_inside:
            return self.first
        way = (step - first_inside) / (last_inside - first_inside)
        return (1 - way) * self.first + way * self.last


CONSTANT = Schedule()
