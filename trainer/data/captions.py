"""Reading caption files: text in whatever encoding people's tools have left it in."""

from __future__ import annotations

import codecs
import itertools
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from trainer.data.names import shown
from trainer.errors import DatasetError

SUFFIXES = (".txt", ".caption")
"""Caption files beside `a.png` are `a.txt` or `a.caption`; the first that is there counts."""
MAX_BYTES = 64 * 1024
"""Far above any caption: Stable Diffusion reads some hundred words of it."""

# The longer mark first: that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class Caption:
    """A caption's text, stripped, and the encoding in which its file is."""

    text: str
    encoding: str = "utf-8"

    @property
    def guessed(self) -> bool:
        """Whether the file is in something else than UTF-8, which others may read differently."""
        return self.encoding not in ("utf-8", "utf-8-sig")


def read_caption(path: Path, name: str | None = None) -> Caption:
    """The caption in `path`, which errors call `name`, or else by its path.

    Raises:
        DatasetError: naming the file, if it cannot be read, is no text, or is far too long.
    """
    called = shown(name or path)
    try:
        if not path.is_file():
            raise DatasetError(f"{called} is not a file.")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DatasetError(f"{called} cannot be read: {error.strerror}.") from None
    if len(content) > MAX_BYTES:
        raise DatasetError(
            f"{called} is over {MAX_BYTES // 1024} KiB, which is no caption.",
            "Shorten it or remove it.",
        )
    try:
        text, encoding = decode(content)
    except ValueError as error:
        raise DatasetError(
            f"{called} is not a text: {error}.", "Save it as UTF-8 text or remove it."
        ) from None
    return Caption(text.strip(), encoding)


def as_words(text: str) -> re.Pattern[str]:
    """What finds a text as words of their own, in capitals or not: `man` is not in `a woman`."""
    return re.compile(rf"(?<!\w){re.escape(text)}(?!\w)", re.IGNORECASE)


def has_trigger(caption: str, trigger: str) -> bool:
    """Whether a caption has the trigger in it."""
    return as_words(trigger).search(caption) is not None


def with_trigger(caption: str, trigger: str | None) -> str:
    """The caption with the trigger in front, unless it has it."""
    if trigger is None or has_trigger(caption, trigger):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def decode(content: bytes) -> tuple[str, str]:
    """Text and name of the encoding of `content`, certain where a mark or UTF-8 makes it so.

    Raises:
        ValueError: saying why it is no text.
    """
    text, encoding = _decode(content)
    if any(character < " " and not character.isspace() for character in text):
        raise ValueError("it holds control characters")
    return text, encoding


def _decode(content: bytes) -> tuple[str, str]:
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            try:
                return content.decode(encoding), encoding
            except UnicodeDecodeError:
                raise ValueError(f"it begins as {encoding} and then is not") from None
    if b"\x00" in content:
        return _decode_unmarked_utf16(content)
    for encoding in ("utf-8", "cp932", "cp1252"):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if encoding != "cp932" or _is_japanese(text):
            return text, "shift-jis" if encoding == "cp932" else encoding
    return content.decode("latin-1"), "latin-1"  # which gives every byte a meaning


def _decode_unmarked_utf16(content: bytes) -> tuple[str, str]:
    """Text without a mark: many zero bytes, all of them on the same side of each pair."""
    zeros_first, zeros_last = content[0::2].count(0), content[1::2].count(0)
    encoding = "utf-16-le" if zeros_last > zeros_first else "utf-16-be"
    one_sided = min(zeros_first, zeros_last) == 0
    many = max(zeros_first, zeros_last) * 6 > len(content)  # more than a third of the pairs
    if not (one_sided and many):
        raise ValueError("it holds NUL bytes")
    try:
        return content.decode(encoding), encoding
    except UnicodeDecodeError:  # an odd length, or halves of pairs
        raise ValueError("it holds NUL bytes, and is no UTF-16 either") from None


def _is_japanese(text: str) -> bool:
    """Whether a Shift-JIS reading makes sense, rather than Western accents read as if they were.

    "garçon" in Latin-1 is valid Shift-JIS for "gar輟n": one rare ideograph between letters.
    Japanese has kana, or ideographs next to each other, most of them common ones: those have a
    first byte below 0xA0, where Latin-1 has no letters.
    """
    foreign = [character for character in text if not character.isascii()]
    names = [unicodedata.name(character, "") for character in foreign]
    if any(name.startswith(("HIRAGANA", "KATAKANA")) for name in names):
        return True
    common = sum(character.encode("cp932")[0] < 0xA0 for character in foreign)
    adjacent = any(not (a.isascii() or b.isascii()) for a, b in itertools.pairwise(text))
    return (
        adjacent
        and all(name.startswith(("CJK", "IDEOGRAPHIC", "FULLWIDTH")) for name in names)
        and common * 2 > len(foreign)
    )
