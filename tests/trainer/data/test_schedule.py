"""The order of batches: full, of one size, due shares, and a pure function of the number."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.buckets import Size
from trainer.data.schedule import Schedule

SHAPES = [Size(64, 64), Size(96, 48), Size(48, 96), Size(128, 32), Size(32, 128)]
Plan = tuple[list[Size], list[int], int, int]

plans = st.lists(
    st.tuples(st.sampled_from(SHAPES), st.integers(1, 12)), min_size=1, max_size=24
).flatmap(
    lambda images: st.tuples(
        st.just([size for size, _ in images]),
        st.just([repeats for _, repeats in images]),
        st.integers(1, 9),
        st.integers(0, 2**32 - 1),
    )
)


def views(schedule: Schedule, batches: int) -> Counter[int]:
    return Counter(index for n in range(batches) for index in schedule.batch(n))


@given(plans, st.integers(0, 10**9))
def test_every_batch_is_full_and_of_one_size(plan: Plan, number: int) -> None:
    sizes, repeats, batch_size, seed = plan
    batch = Schedule.plan(sizes, repeats, batch_size, seed).batch(number)
    assert len(batch) == batch_size
    assert len({sizes[index] for index in batch}) == 1


@settings(max_examples=25)
@given(plans)
def test_after_a_round_every_image_has_had_exactly_its_share(plan: Plan) -> None:
    sizes, repeats, batch_size, seed = plan
    schedule = Schedule.plan(sizes, repeats, batch_size, seed)
    seen = views(schedule, schedule.round_length)
    assert seen == {index: batch_size * r for index, r in enumerate(schedule.repeats)}


@settings(max_examples=25)
@given(plans, st.integers(1, 400))
def test_at_any_moment_no_image_is_far_from_its_share(plan: Plan, batches: int) -> None:
    """Off by at most a batch, some more where there are many buckets, whatever has been seen."""
    sizes, repeats, batch_size, seed = plan
    schedule = Schedule.plan(sizes, repeats, batch_size, seed)
    seen = views(schedule, batches)
    for index, count in enumerate(repeats):
        share = count / sum(repeats)
        allowed = batch_size * (1 + len(schedule.buckets) * share) + 2
        assert abs(seen[index] - share * batches * batch_size) <= allowed


@settings(max_examples=25)
@given(plans, st.integers(500, 700))
def test_over_a_run_shares_are_within_one_percent(plan: Plan, batches: int) -> None:
    sizes, repeats, batch_size, seed = plan
    seen = views(Schedule.plan(sizes, repeats, batch_size, seed), batches)
    for index, count in enumerate(repeats):
        share = seen[index] / (batches * batch_size)
        assert abs(share - count / sum(repeats)) <= 0.01


@settings(max_examples=25)
@given(plans, st.integers(0, 200))
def test_over_a_whole_run_views_are_within_one_percent_of_what_repeats_say(
    plan: Plan, more: int
) -> None:
    """Of each image's own due views, however few repeats it has and however odd its bucket, once a
    run is long enough for a view more or less to be under a percent."""
    sizes, repeats, batch_size, seed = plan
    schedule = Schedule.plan(sizes, repeats, batch_size, seed)
    slack = batch_size * (1 + len(schedule.buckets)) + 2
    batches = 100 * slack * sum(repeats) // (min(repeats) * batch_size) + more
    if batches > 20_000:  # some views of very many; the exact round below covers those
        batches = schedule.round_length * (1 + more % 3)
    seen = views(schedule, batches)
    for index, count in enumerate(repeats):
        due = count / sum(repeats) * batches * batch_size
        assert abs(seen[index] - due) <= 0.01 * due


def test_a_single_image_in_a_bucket_of_its_own_keeps_its_share() -> None:
    """Among 99 others, in batches of 8: neither dropped nor shown eight times too often."""
    sizes = [SHAPES[0]] * 99 + [SHAPES[3]]
    schedule = Schedule.plan(sizes, [1] * 100, 8, seed=5)
    seen = views(schedule, 10_000)
    assert seen[99] == 800
    assert all(abs(seen[index] - 800) <= 8 for index in range(99))


@given(plans, st.integers(0, 10**6))
def test_a_batch_depends_on_nothing_but_its_number(plan: Plan, number: int) -> None:
    schedule = Schedule.plan(*plan)
    schedule.batch(0)
    assert Schedule.plan(*plan).batch(number) == schedule.batch(number)


@given(plans)
def test_small_steps_forward_never_repeat_an_image_before_its_pass_is_over(plan: Plan) -> None:
    """With equal repeats, the first views of a bucket are all different."""
    sizes, _, batch_size, seed = plan
    schedule = Schedule.plan(sizes, [1] * len(sizes), batch_size, seed)
    by_size: dict[Size, list[int]] = {}
    for number in range(schedule.round_length):
        batch = schedule.batch(number)
        by_size.setdefault(sizes[batch[0]], []).extend(batch)
    for size, order in by_size.items():
        members = [index for index, other in enumerate(sizes) if other == size]
        assert sorted(order[: len(members)]) == members


def test_seeds_and_passes_give_other_orders() -> None:
    sizes, repeats = [SHAPES[0]] * 30, [1] * 30
    schedule = Schedule.plan(sizes, repeats, 30, seed=1)
    assert schedule.batch(0) != schedule.batch(1)
    assert schedule.batch(0) != Schedule.plan(sizes, repeats, 30, seed=2).batch(0)


def test_the_order_never_changes_under_a_run() -> None:
    """These batches were drawn when the schedule was written; a resumed run relies on them."""
    sizes = [SHAPES[0]] * 5 + [SHAPES[1]] * 3
    schedule = Schedule.plan(sizes, [1, 1, 1, 1, 2, 1, 1, 3], batch_size=3, seed=42)
    assert [schedule.batch(n) for n in (0, 1, 2, 3, 1000)] == [
        (1, 2, 4),
        (7, 7, 6),
        (3, 4, 0),
        (5, 7, 7),
        (0, 4, 1),
    ]


def test_repeats_in_common_are_no_repeats() -> None:
    schedule = Schedule.plan([SHAPES[0]] * 3, [10, 10, 20], 1, 0)
    assert schedule.repeats == (1, 1, 2)


@pytest.mark.parametrize(
    ("sizes", "repeats", "batch_size"),
    [([], [], 1), (SHAPES[:2], [1], 1), (SHAPES[:1], [0], 1), (SHAPES[:1], [1], 0)],
)
def test_senseless_plans_are_refused(
    sizes: list[Size], repeats: list[int], batch_size: int
) -> None:
    with pytest.raises(ValueError, match="a schedule needs"):
        Schedule.plan(sizes, repeats, batch_size, 0)
