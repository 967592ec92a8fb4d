"""CLIP's tokenizer for checkpoints that bring none, from the merges that ship in `data/`."""

from __future__ import annotations

from typing import Any

from trainer.data.tokens import clip_vocabulary
from trainer.errors import BaseModelError
from trainer.model.bases import Family


def clip_tokenizer(words: int, pad_token: str) -> Any:
    """The tokenizer of a text encoder that knows `words` words.

    All published bases know CLIP's 49,408. A smaller encoder knows as many of its merges as it has
    room for; words beyond, as embeddings add them, are not asked for.

    Raises:
        BaseModelError: if it has no room for single letters.
    """
    from transformers import CLIPTokenizer

    letters, merges = clip_vocabulary()
    if words < len(letters) + 2:
        raise BaseModelError(
            f"The checkpoint's text encoder knows {words} words, too few for CLIP's vocabulary.",
            "Give the same model as a diffusers folder, with its tokenizer.",
        )
    merges = merges[: max(0, words - len(letters) - 2)]
    names = [*letters, *(first + second for first, second in merges),
             "<|startoftext|>", "<|endoftext|>"]  # fmt: skip
    return CLIPTokenizer(
        vocab={name: index for index, name in enumerate(names)},
        merges=merges,
        model_max_length=77,
        pad_token=pad_token,
    )


def padding_of(part: str, family: Family) -> str:
    """What short prompts are filled up with: CLIP's end of text, OpenCLIP's first word."""
    is_open_clip = family is Family.SD2 or part == "tokenizer_2"
    return "!" if is_open_clip else "<|endoftext|>"
