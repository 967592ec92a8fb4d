"""Changes to a caption that people make to all of them at once: plain functions on text."""

from __future__ import annotations

import re

from trainer.data.captions import as_words


def replaced(caption: str, old: str, new: str) -> str:
    """The caption with every `old`, in capitals or not, become `new`."""
    return re.sub(re.escape(old), lambda _: new, caption, flags=re.IGNORECASE)


def without_word(caption: str, word: str) -> str:
    """The caption without the word, and without the comma or the gap that it leaves."""
    text, count = as_words(word).subn("", caption)
    if not count:
        return caption
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"\s*,(\s*,)+", ",", text)
    return re.sub(r"\s+,", ",", text).strip(" ,")
