"""Prompts whose words are weighed, in the grammar that A1111 and Forge made common.

`(word)` weighs 1.1 times, `((word))` 1.21, `[word]` 1/1.1, `(word:1.3)` 1.3 times; these nest.
`\\(`, `\\)`, `\\[`, `\\]` and `\\\\` are the characters themselves, and `BREAK` begins a new chunk
of 75 tokens. An unclosed bracket acts to the end. Prompt editing, `[from:to:when]`, is not read.

A weight multiplies the hidden states of its tokens; then every chunk is scaled so that its mean is
what it was, which is A1111's default emphasis (`Original`). Without weights nothing is changed.
(A1111 makes its chunks a little shorter where a comma is near; here they always hold 75.)
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainer.errors import UserError
from trainer.model.prompts import chunk_length, laid_out, tokens
from trainer.model.stable_diffusion import BaseModel, Conditioning

_ROUND, _SQUARE = 1.1, 1 / 1.1
_HEAVIEST = 100
_WEIGHT = r":\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)"
_PIECE = re.compile(rf"\\[()\[\]\\]|[(\[\])]|{_WEIGHT}|\bBREAK\b|[^\\()\[\]:B]+|.", re.DOTALL)


@dataclass(frozen=True)
class Fragment:
    """Words of one weight. `ends_chunk` is true of the last before a BREAK."""

    text: str
    weight: float = 1.0
    ends_chunk: bool = False


def parse(prompt: str) -> list[Fragment]:
    """The fragments of a prompt; neighbours differ in weight or have a BREAK between them.

    Raises:
        UserError: if a weight is beyond ±100, as hundreds of brackets are.
    """
    written: list[str | None] = []  # None is a BREAK
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def weigh(bracket: str, factor: float) -> bool:
        """Closes the last bracket of the kind; False if none is open."""
        if not opened[bracket]:
            return False
        for index in range(opened[bracket].pop(), len(weights)):
            weights[index] *= factor
        return True

    for match in _PIECE.finditer(prompt):
        piece = match[0]
        if piece in opened:
            opened[piece].append(len(written))
        elif (
            (match[1] is not None and weigh("(", float(match[1])))
            or (piece == ")" and weigh("(", _ROUND))
            or (piece == "]" and weigh("[", _SQUARE))
        ):
            continue
        else:
            escaped = len(piece) == 2 and piece[0] == "\\"
            written.append(None if piece == "BREAK" else piece[escaped:])
            weights.append(1.0)
    while weigh("(", _ROUND) or weigh("[", _SQUARE):
        continue
    if any(abs(weight) > _HEAVIEST for weight in weights):
        raise UserError(
            f"The prompt weighs words more than {_HEAVIEST} times.",
            "Write \\( for a bracket that is only a character.",
        )
    return _joined(written, weights)


def encode(model: BaseModel, prompts: Sequence[str], clip_skip: int = 1) -> Conditioning:
    """What weighted prompts of any length say to the UNet.

    `clip_skip` is A1111's: see `BaseModel.encode_chunks`. The shorter prompts are read with empty
    chunks at their end, as many as the longest needs.
    """
    laid = [
        [_rows(tokenizer, parse(prompt)) for prompt in prompts] for tokenizer in model.tokenizers
    ]
    chunks = max(len(ids) for encoder in laid for ids, _ in encoder)
    all_ids, all_weights = [], []
    for tokenizer, encoder in zip(model.tokenizers, laid, strict=True):
        empty_ids, empty_weights = _rows(tokenizer, [])
        all_ids.append(torch.tensor([ids + empty_ids * (chunks - len(ids)) for ids, _ in encoder]))
        all_weights.append(
            torch.tensor([row + empty_weights * (chunks - len(row)) for _, row in encoder])
        )
    return model.encode_chunks(all_ids, all_weights, clip_skip)


def _joined(written: Sequence[str | None], weights: Sequence[float]) -> list[Fragment]:
    fragments: list[Fragment] = []
    for text, weight in zip(written, weights, strict=True):
        last = fragments[-1] if fragments else Fragment("", weight)
        if text is None:
            fragments[-1:] = [Fragment(last.text, last.weight, ends_chunk=True)]
        elif fragments and last.weight == weight and not last.ends_chunk:
            fragments[-1] = Fragment(last.text + text, weight)
        else:
            fragments.append(Fragment(text, weight))
    return fragments


def _rows(
    tokenizer: Any, fragments: Sequence[Fragment]
) -> tuple[list[list[int]], list[list[float]]]:
    """The ids of a prompt's chunks and the weights of their tokens, both [chunks, 77]."""
    marks = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    length = chunk_length(tokenizer)
    rows: list[list[int]] = []
    weights: list[list[float]] = []
    parts: list[list[Fragment]] = [[]]
    for fragment in fragments:
        parts[-1].append(fragment)
        if fragment.ends_chunk:
            parts.append([])
    for part in parts:
        ids: list[int] = []
        weight: list[float] = []
        for fragment in part:
            found = tokens(tokenizer, fragment.text)
            ids += found
            weight += [fragment.weight] * len(found)
        needed = max(1, math.ceil(len(ids) / length))
        rows += laid_out(ids, needed, length, *marks)
        weights += laid_out(weight, needed, length, 1.0, 1.0, 1.0)
    return rows, weights
