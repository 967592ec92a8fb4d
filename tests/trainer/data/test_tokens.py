"""Counting tokens without a base: the same as CLIP's own tokenizer, which is the oracle here."""

from __future__ import annotations

import gzip
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from trainer.data import tokens
from trainer.data.tokens import Tokenizer, clip, of_base

TEXTS = [
    "", " ", "a photo of a cat", "1girl, blue_hair, (masterpiece:1.2), best quality",
    "The dog's bone isn't 1234 here!!!", "don't we'll I'VE they'd", "two\nlines\tand  spaces",
    "extraordinarily incomprehensible mochimochi zorkblat", "café élève naïve über STRASSE",
    "女の子、青い空", "девочка и кот", "^_^ :) ... --- ~~ <lora:x:1>", "a cat 🐈 and a dog 🐕‍🦺",
    "trailing_", "__init__", "8k uhd, f/1.8, 35mm", "a" * 90,
]  # fmt: skip


@pytest.fixture(scope="module")
def oracle() -> CLIPTokenizer:
    """CLIP's tokenizer as transformers makes it from the same merges."""
    with gzip.open(tokens._MERGES, "rt", encoding="utf-8") as lines:
        merges = [tuple(line.split()) for line in lines if not line.startswith("#v")]
    letters = sorted(tokens._LETTERS)
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(a + b for a, b in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    assert len(words) == 49_408  # as many as every Stable Diffusion text encoder has embeddings
    return CLIPTokenizer(vocab={word: n for n, word in enumerate(words)}, merges=merges)


def count(oracle: CLIPTokenizer, text: str) -> int:
    return len(oracle(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("text", TEXTS)
def test_counts_are_those_of_clip(text: str, oracle: CLIPTokenizer) -> None:
    assert len(clip().ends(text)) == count(oracle, text)


def test_counts_are_those_of_clip_for_any_string_of_letters(oracle: CLIPTokenizer) -> None:
    random = Random(0)
    for _ in range(300):
        letters = random.choices(
            "abcdefghijklmnoprstuvwy AB 019 ,.'_-()éüñ", k=random.randrange(60)
        )
        text = "".join(letters)
        assert len(clip().ends(text)) == count(oracle, text), text


def test_ends_are_where_the_words_end() -> None:
    text = "A cat's 2 mats,  zorkblat"
    ends = clip().ends(text)
    parts = [text[a:b].strip() for a, b in zip([0, *ends], ends, strict=False)]
    assert parts[:6] == ["A", "cat", "'s", "2", "mats", ","]
    assert "".join(parts[6:]) == "zorkblat"


@given(st.text(max_size=120))
def test_ends_lie_in_the_text_in_order(text: str) -> None:
    ends = clip().ends(text)
    assert ends == sorted(ends)
    assert all(0 < end <= len(text) for end in ends)


def test_a_word_without_end_takes_no_time_without_end() -> None:
    assert len(clip().ends("ab" * 32_000)) > 1000


def test_the_merges_of_a_base(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    lines = "#version: 0.2\nc a\nca t</w>\n"
    (tmp_path / "tokenizer" / "merges.txt").write_text(lines)
    assert of_base(tmp_path).ends("cat cats") == [3, 6, 7, 8]
    assert Tokenizer([]).ends("cat") == [1, 2, 3]


def test_a_base_at_hand_has_its_own_words_and_any_other_has_clips() -> None:
    own = tokens.for_base("embedded")
    assert own is not tokens.clip()
    for elsewhere in ("someone/some-model", "no such base at all"):
        assert tokens.for_base(elsewhere) is tokens.clip()
