"""File names as people may see them: no control characters, no bytes that are not text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_LONGEST_SHOWN = 120
_LISTED_AT_MOST = 5


def printable(name: Path | str) -> str:
    """`name` on one line and in valid Unicode, as JSON and databases need it.

    A newline becomes `\\n`; a byte that is no valid text, which Python keeps as a lone surrogate,
    becomes `\\udcXX`.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in str(name)
    )


def shown(name: Path | str) -> str:
    """`name` fit for a message: printable, and its middle left out if it is long."""
    text = printable(name)
    if len(text) <= _LONGEST_SHOWN:
        return text
    half = _LONGEST_SHOWN // 2
    return f"{text[:half]}…{text[-half:]}"


def listed(names: Sequence[Path | str]) -> str:
    """The first few names, and how many more there are."""
    few = ", ".join(shown(name) for name in names[:_LISTED_AT_MOST])
    rest = len(names) - _LISTED_AT_MOST
    return f"{few} and {rest} more" if rest > 0 else few
