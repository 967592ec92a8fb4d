"""Captions as steps see them."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.captions import with_trigger
from trainer.data.wording import reworded
from trainer.randomness import generator
from trainer.settings import Dataset

TAGS = "zkv, cat, red fur, by a river, evening"


def read(wanted: Dataset, number: int, caption: str = TAGS) -> str:
    return reworded(caption, wanted, generator(0, "captions", number))


@pytest.mark.parametrize(
    ("caption", "trigger", "expected"),
    [
        ("a cat", None, "a cat"),
        ("a cat", "zkv", "zkv, a cat"),
        ("a ZKV cat", "zkv", "a ZKV cat"),
        ("a woman", "man", "man, a woman"),
        ("", "zkv", "zkv"),
        ("", None, ""),
    ],
)
def test_the_trigger_is_put_in_front_once(caption: str, trigger: str | None, expected: str) -> None:
    assert with_trigger(caption, trigger) == expected


def test_nothing_asked_for_changes_nothing() -> None:
    plain = Dataset(caption_dropout=0)
    for caption in ("", "  odd ,, spaces , ", "一、二, 三", TAGS):
        assert read(plain, 1, caption) == caption


@given(st.integers(0, 10**6), st.integers(0, 7))
def test_shuffling_keeps_every_tag_and_the_first_few_in_place(number: int, keep: int) -> None:
    wanted = Dataset(caption_dropout=0, shuffle_tags=True, keep_tags=keep)
    tags = read(wanted, number).split(", ")
    assert Counter(tags) == Counter(TAGS.split(", "))
    assert tags[:keep] == TAGS.split(", ")[:keep]
    assert read(wanted, number).split(", ") == tags


def test_shuffling_gives_all_orders_alike() -> None:
    wanted = Dataset(caption_dropout=0, shuffle_tags=True)
    orders = Counter(read(wanted, number, "a, b, c") for number in range(3000))
    assert len(orders) == 6 and min(orders.values()) > 400


def test_tags_are_dropped_as_often_as_asked_but_never_the_kept_or_the_trigger() -> None:
    wanted = Dataset(caption_dropout=0, tag_dropout=0.3, keep_tags=2, trigger="evening")
    counts = Counter(tag for n in range(2000) for tag in read(wanted, n).split(", "))
    assert counts["zkv"] == counts["cat"] == counts["evening"] == 2000
    for tag in ("red fur", "by a river"):
        assert abs(counts[tag] / 2000 - 0.7) < 0.04
    left = read(wanted, 3).split(", ")
    assert left == [tag for tag in TAGS.split(", ") if tag in left]  # in their order


def test_the_trigger_in_front_stays_in_front() -> None:
    wanted = Dataset(caption_dropout=0, shuffle_tags=True, tag_dropout=0.5, trigger="ZKV")
    assert all(read(wanted, n).split(", ")[0] == "zkv" for n in range(50))


def test_captions_are_dropped_as_often_as_asked() -> None:
    wanted = Dataset(caption_dropout=0.2, trigger="zkv")
    empty = sum(read(wanted, n) == "" for n in range(3000)) / 3000
    assert abs(empty - 0.2) < 0.025
    assert read(Dataset(caption_dropout=1), 0) == ""
