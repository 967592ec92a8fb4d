"""Schedules over the steps, as arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trainer.preview.schedule import CONSTANT, Schedule


def _factors(schedule: Schedule, steps: int) -> list[float]:
    return [schedule.factor(step, steps) for step in range(steps)]


def test_what_the_factors_are() -> None:
    assert _factors(CONSTANT, 4) == [1, 1, 1, 1]
    assert _factors(Schedule(end=0.5), 4) == [1, 1, 0, 0]
    assert _factors(Schedule(begin=0.5), 5) == [0, 0, 1, 1, 1]
    assert _factors(Schedule(first=0), 5) == [0, 0.25, 0.5, 0.75, 1]
    assert _factors(Schedule(first=2, last=-2, end=0.5), 6) == [2, 0, -2, 0, 0, 0]


@given(st.floats(0.01, 0.99), st.integers(1, 60))
def test_what_ends_and_what_begins_there_share_the_steps_out(share: float, steps: int) -> None:
    early, late = _factors(Schedule(end=share), steps), _factors(Schedule(begin=share), steps)
    assert [one + other for one, other in zip(early, late, strict=True)] == [1] * steps
    assert early == sorted(early, reverse=True)


@given(st.integers(1, 60), st.floats(-4, 4), st.floats(-4, 4))
def test_a_ramp_stays_between_its_ends(steps: int, first: float, last: float) -> None:
    factors = _factors(Schedule(first=first, last=last), steps)
    assert factors[0] == first
    assert steps == 1 or factors[-1] == last
    assert all(min(first, last) <= factor <= max(first, last) for factor in factors)


def test_an_empty_span_is_refused() -> None:
    with pytest.raises(ValidationError, match="not before its end"):
        Schedule(begin=0.5, end=0.5)
