"""The loss curve: few points, finite ones, and words for those who do not see it."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.chart import MAX_POINTS, loss_chart, smoothed, thinned
from trainer.events import Validated


@given(st.integers(0, 5000), st.integers(2, 500))
def test_thinning_keeps_the_last_point_and_the_order(count: int, at_most: int) -> None:
    points = [(float(x), math.sin(x)) for x in range(count)]
    thin = thinned(points, at_most)
    assert len(thin) <= at_most
    assert thin[-1:] == points[-1:]
    assert [x for x, _ in thin] == sorted({x for x, _ in thin})


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=200))
def test_smoothing_stays_within_what_it_smooths(losses: list[float]) -> None:
    fair = smoothed([(float(x), y) for x, y in enumerate(losses)])
    assert all(min(losses) * 0.999 <= y <= max(losses) * 1.001 for _, y in fair)


def test_a_constant_curve_is_smoothed_to_itself() -> None:
    fair = smoothed([(float(x), 0.25) for x in range(50)])
    assert all(y == pytest.approx(0.25) for _, y in fair)


@pytest.mark.parametrize("logarithmic", [False, True])
def test_a_long_run_is_a_small_drawing(logarithmic: bool) -> None:
    losses = [(step, 0.1 + 1 / step) for step in range(1, 50_001)]
    drawn = loss_chart(losses, [], 50_000, logarithmic)
    for line in re.findall(r'points="([^"]*)"', drawn):
        assert 0 < len(line.split()) <= MAX_POINTS
    assert len(drawn) < 20_000


def test_held_out_losses_are_dots_that_say_what_they_are() -> None:
    validated = Validated(step=20, training=0.3, base_training=0.5, held_out=0.4, base_held_out=0.5)
    drawn = loss_chart([(1, 0.5), (2, 0.4)], [validated], 40)
    assert "Held out, step 20: 0.4000" in drawn
    assert "held-out images" in drawn


@pytest.mark.parametrize(
    "losses", [[], [(1, 0.5)], [(1, math.nan), (2, math.inf), (3, -1.0), (4, 0.1)]]
)
def test_without_two_good_points_there_is_a_sentence(losses: list[tuple[int, float]]) -> None:
    assert "<svg" not in loss_chart(losses, [], 10)


def test_no_number_in_the_drawing_is_nan() -> None:
    flat = loss_chart([(step, 0.5) for step in range(1, 9)], [], 8, logarithmic=True)
    assert "nan" not in flat and "inf" not in flat
