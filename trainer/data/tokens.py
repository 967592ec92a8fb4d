"""How many tokens a caption has, estimated: CLIP's own vocabulary comes only with a base.

The text is cut up as CLIP's tokenizer does before it looks anything up; how many tokens each piece
becomes is then a guess, which for English captions is rarely off by more than a tenth.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

LIMIT = 75
"""Tokens that CLIP reads, without the two marks around them."""

Tokenize = Callable[[str], Sequence[int]]
"""From a caption to the character positions at which its tokens end."""

_PIECES = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|[^\s\w]+|_+", re.IGNORECASE)
_LETTERS_OF_A_TOKEN = 9  # most English words of up to nine letters are one token


def estimated_ends(text: str) -> list[int]:
    """Where the tokens of `text` end, as far as can be told without the vocabulary."""
    ends: list[int] = []
    for piece in _PIECES.finditer(text):
        count = _tokens_of(piece.group())
        length = piece.end() - piece.start()
        ends += [piece.start() + math.ceil(length * nth / count) for nth in range(1, count + 1)]
    return ends


def _tokens_of(piece: str) -> int:
    if piece.isascii():
        return 1 + (len(piece) - 1) // _LETTERS_OF_A_TOKEN
    return math.ceil(
        len(piece.encode("utf-8", "replace")) / 2
    )  # other scripts take about two bytes each
