"""Changes to all captions at once, on single ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.captions import replaced, without_word
from app.workshop import Workshop
from trainer.data.captions import with_trigger


def test_replacing_takes_text_as_it_is() -> None:
    assert replaced("A cat (big)", "(BIG)", r"\1") == r"A cat \1"


@pytest.mark.parametrize(
    ("caption", "with_it"),
    [("a cat", "zkv, a cat"), ("", "zkv"), ("ZKV on a hill", "ZKV on a hill"),
     ("zkvs", "zkv, zkvs")],
)  # fmt: skip
def test_a_word_is_put_in_front_once(caption: str, with_it: str) -> None:
    assert with_trigger(caption, "zkv") == with_it
    assert with_trigger(with_it, "zkv") == with_it


@pytest.mark.parametrize(
    ("caption", "without"),
    [("zkv, a cat", "a cat"), ("a zkv cat", "a cat"), ("a cat, zkv", "a cat"),
     ("a, zkv, b", "a, b"), ("zkvs  here", "zkvs  here"), ("zkv", "")],
)  # fmt: skip
def test_a_word_is_taken_out_with_its_comma(caption: str, without: str) -> None:
    assert without_word(caption, "zkv") == without


def test_the_last_change_of_all_is_taken_back(workshop: Workshop, dataset: Path) -> None:
    before = [image.caption for image in workshop.datasets.read("pips").images]
    assert workshop.datasets.rewrite("pips", str.upper) == 2
    assert workshop.datasets.rewrite("pips", str.upper) == 0
    assert workshop.datasets.undo("pips") == 2
    assert [image.caption for image in workshop.datasets.read("pips").images] == before
    assert workshop.datasets.undo("pips") == 0
