"""Weighted prompts: the grammar, and what the weights do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import UserError
from trainer.model.load import load
from trainer.model.stable_diffusion import BaseModel
from trainer.preview.emphasis import Fragment, encode, parse
from trainer.settings import Base


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> BaseModel:
    return load(Base(model=str(tiny_base), device="cpu"))


def _weights(prompt: str) -> list[tuple[str, float]]:
    return [(one.text, round(one.weight, 4)) for one in parse(prompt)]


@pytest.mark.parametrize(
    ("prompt", "weights"),
    [
        ("", []),
        ("a cat, 3:4", [("a cat, 3:4", 1)]),
        ("a (cat:1.5) here", [("a ", 1), ("cat", 1.5), (" here", 1)]),
        ("((a)) [b]", [("a", 1.21), (" ", 1), ("b", 0.9091)]),
        ("(a (b:1.5) c:1.2)", [("a ", 1.2), ("b", 1.8), (" c", 1.2)]),
        (r"a \(b\) \[c\] \\", [("a (b) [c] \\", 1)]),
        ("a (b", [("a ", 1), ("b", 1.1)]),
        ("a) b] :1.2)", [("a) b] :1.2)", 1)]),
        ("(a:-.5)", [("a", -0.5)]),
        ("(a: 1.3 )", [("a", 1.3)]),
        ("(a:1)", [("a", 1)]),
    ],
)
def test_the_grammar_is_a1111s(prompt: str, weights: list[tuple[str, float]]) -> None:
    assert _weights(prompt) == weights


def test_break_ends_a_chunk() -> None:
    assert parse("a BREAK b") == [Fragment("a ", ends_chunk=True), Fragment(" b")]
    assert parse("BREAKFAST") == [Fragment("BREAKFAST")]


@given(st.text("ab ()[]:.1\\", max_size=30))
def test_any_text_is_read_and_plain_letters_are_kept(prompt: str) -> None:
    def letters(text: str) -> str:
        return "".join(char for char in text if char in "ab")

    assert letters("".join(one.text for one in parse(prompt))) == letters(prompt)


def test_weights_of_one_are_the_plain_prompt(model: BaseModel) -> None:
    long = "a very long cat " * 12  # bytes are tokens here, so that these are several chunks
    for plain, written in [("a cat", "a (cat:1.0)"), (long, f"({long}:1)"), ("a (b", r"a \(b")]:
        wanted = model.encode_prompts([plain], chunks=encode(model, [plain]).hidden.shape[1] // 77)
        assert torch.equal(encode(model, [written]).hidden, wanted.hidden)


def test_a_weight_acts_on_its_tokens_and_the_mean_is_restored(model: BaseModel) -> None:
    plain = encode(model, ["x y"]).hidden
    heavy = encode(model, ["x (y:2)"]).hidden
    by_hand = plain.clone()
    by_hand[:, 2] *= 2  # after the mark and x
    by_hand *= plain.mean() / by_hand.mean()
    torch.testing.assert_close(heavy, by_hand)
    torch.testing.assert_close(heavy.mean(), plain.mean())


def test_prompts_of_different_lengths_are_encoded_together(model: BaseModel) -> None:
    together = encode(model, ["x", "y BREAK z"]).hidden
    assert together.shape[1] == 2 * 77
    torch.testing.assert_close(together[1:], encode(model, ["y BREAK z"]).hidden)
    torch.testing.assert_close(together[:1], encode(model, ["x BREAK"]).hidden)


def test_what_is_too_much_is_refused(model: BaseModel) -> None:
    with pytest.raises(UserError, match="more than 100 times"):
        parse("(" * 200 + "a")
    with pytest.raises(UserError, match="2 layers"):
        encode(model, ["a"], clip_skip=3)
