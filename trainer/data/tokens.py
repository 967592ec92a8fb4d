"""Where CLIP's tokens end in a caption, so that one can say what of it is read.

All Stable Diffusion bases share CLIP's byte-pair vocabulary (Sennrich et al., 2016,
arXiv:1508.07909), whose merges are kept in `vocabulary/`; no base and no torch is needed to count.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path

from trainer.errors import BaseModelError
from trainer.model.bases import FolderBase, resolve

_MERGES = Path(__file__).parent / "vocabulary" / "clip_merges.txt.gz"
_END_OF_WORD = "</w>"
# Contractions, words, single digits, and runs of signs; an underscore is a sign. A word of over a
# hundred letters is no word, and is cut so that it takes no time that grows with its square.
_PIECES = re.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]{1,100}|\d|(?:[^\s\w]|_){1,100}", re.IGNORECASE
)
_CACHED_WORDS = 20_000
_NEVER = 1 << 30  # the rank of a pair that is not merged


class Tokenizer:
    """A byte-pair tokenizer as CLIP's, from the lines of its `merges.txt`."""

    def __init__(self, merges: Iterable[str]) -> None:
        self._rank = {pair: rank for rank, pair in enumerate(_pairs(merges))}
        self._lengths: dict[str, tuple[int, ...]] = {}

    def ends(self, text: str) -> list[int]:
        """The positions at which the tokens of `text` end, one each, in order.

        Letters with their accents in one character are expected (Unicode's form NFC).
        """
        found: list[int] = []
        for piece in _PIECES.finditer(text):
            found += [piece.start() + end for end in self._ends_of_piece(piece.group())]
        return found

    def _ends_of_piece(self, piece: str) -> list[int]:
        lengths = self._lengths.get(piece)
        if lengths is None:
            if len(self._lengths) >= _CACHED_WORDS:
                self._lengths.clear()
            lengths = self._lengths[piece] = tuple(map(len, self._split(piece)))
        # Tokens are made of bytes, and one may end within a character: that then counts as read.
        bytes_before = list(accumulate((len(_bytes(c)) for c in piece), initial=0))
        return [
            next(n for n, count in enumerate(bytes_before) if count >= end)
            for end in accumulate(lengths)
        ]

    def _split(self, piece: str) -> list[str]:
        """The tokens of a piece, each letter standing for a byte, the mark of the end left out."""
        tokens = [_LETTERS[byte] for byte in _bytes(piece)]
        tokens[-1] += _END_OF_WORD
        while len(tokens) > 1:
            first, second = min(pairwise(tokens), key=lambda pair: self._rank.get(pair, _NEVER))
            if (first, second) not in self._rank:
                break
            tokens = _joined(tokens, first, second)
        return [*tokens[:-1], tokens[-1].removesuffix(_END_OF_WORD)]


@lru_cache(maxsize=1)
def clip() -> Tokenizer:
    """The tokenizer of Stable Diffusion's bases."""
    with gzip.open(_MERGES, "rt", encoding="utf-8") as lines:
        return Tokenizer(lines)


def clip_vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    """CLIP's single letters in the order of their numbers, within a word and at its end, and the
    pairs that are merged, in the order of theirs."""
    letters = sorted(_LETTERS, key=lambda letter: (letter != chr(_LETTERS.index(letter)), letter))
    with gzip.open(_MERGES, "rt", encoding="utf-8") as lines:
        pairs = _pairs(lines)
    return [*letters, *(f"{letter}{_END_OF_WORD}" for letter in letters)], pairs


def of_base(folder: Path) -> Tokenizer:
    """The tokenizer of a base in the diffusers layout, such as the embedded one.

    Raises:
        OSError: if it has none.
    """
    with (folder / "tokenizer" / "merges.txt").open(encoding="utf-8") as lines:
        return Tokenizer(lines)


def for_base(reference: str) -> Tokenizer:
    """The tokenizer of a base reference where its folder is at hand, else CLIP's, which all
    published bases have."""
    try:
        place = resolve(reference)
        return of_base(place.path) if isinstance(place, FolderBase) else clip()
    except (BaseModelError, OSError):
        return clip()


def _pairs(merges: Iterable[str]) -> list[tuple[str, str]]:
    """The pairs in the lines of a `merges.txt`."""
    split = (line.split() for line in merges if line.strip() and not line.startswith("#v"))
    return [(first, second) for first, second in split]


def _bytes(text: str) -> bytes:
    return text.lower().encode("utf-8", "replace")


def _joined(tokens: list[str], first: str, second: str) -> list[str]:
    """`tokens` with every `first` that is followed by `second` joined with it."""
    joined: list[str] = []
    for token in tokens:
        if joined and joined[-1] == first and token == second:
            joined[-1] = first + second
        else:
            joined.append(token)
    return joined


def _letters() -> list[str]:
    """A visible letter for each byte, as GPT-2 and CLIP write them in their vocabularies."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1),
               *range(ord("®"), ord("ÿ") + 1)}  # fmt: skip
    others = iter(range(256, 512))
    return [chr(byte) if byte in visible else chr(next(others)) for byte in range(256)]


_LETTERS = _letters()
