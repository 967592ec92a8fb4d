"""Captions in every encoding that people's tools leave behind."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.captions import MAX_BYTES, decode, read_caption
from trainer.errors import DatasetError

FRENCH = "un garçon au café, l’élève “A” à côté"
GERMAN = "ein Mädchen über der Straße"
JAPANESE = "女の子、青い空"
KANJI = "少女、青空"
RUSSIAN = "девочка и кот"

READ: dict[str, tuple[bytes, str, str]] = {
    "plain": (b"a cat", "a cat", "utf-8"),
    "empty": (b"", "", "utf-8"),
    "blank": (b" \r\n\t ", "", "utf-8"),
    "utf-8": (JAPANESE.encode(), JAPANESE, "utf-8"),
    "utf-8-mark": (codecs.BOM_UTF8 + FRENCH.encode(), FRENCH, "utf-8-sig"),
    "mark-only": (codecs.BOM_UTF8, "", "utf-8-sig"),
    "utf-16": (GERMAN.encode("utf-16"), GERMAN, "utf-16"),
    "utf-16-big": (codecs.BOM_UTF16_BE + RUSSIAN.encode("utf-16-be"), RUSSIAN, "utf-16"),
    "utf-16-unmarked": (GERMAN.encode("utf-16-le"), GERMAN, "utf-16-le"),
    "utf-16-big-unmarked": (GERMAN.encode("utf-16-be"), GERMAN, "utf-16-be"),
    "utf-32": (FRENCH.encode("utf-32"), FRENCH, "utf-32"),
    "latin-1": (GERMAN.encode("latin-1"), GERMAN, "cp1252"),
    "cp1252": (FRENCH.encode("cp1252"), FRENCH, "cp1252"),
    "accents-in-a-row": ("éléphant, naïveté, Noël".encode("latin-1"), "éléphant, naïveté, Noël",
                         "cp1252"),
    "spanish": ("¿niño o niña? ¡sí!".encode("cp1252"), "¿niño o niña? ¡sí!", "cp1252"),
    "not-even-cp1252": (b"caf\xe9 \x81", "café \x81", "latin-1"),
    "shift-jis": (JAPANESE.encode("cp932"), JAPANESE, "shift-jis"),
    "shift-jis-kanji": (KANJI.encode("cp932"), KANJI, "shift-jis"),
    "shift-jis-tags": ("1girl, 青空, smile".encode("cp932"), "1girl, 青空, smile", "shift-jis"),
    "windows-lines": (b"a cat\r\non a mat\r\n", "a cat\r\non a mat", "utf-8"),
    "no-break-space": ("a cat\u00a0".encode(), "a cat", "utf-8"),
    "emoji": ("a cat 🐈".encode(), "a cat 🐈", "utf-8"),
}  # fmt: skip

REFUSED: dict[str, tuple[bytes, str]] = {
    "nul": (b"a cat\x00 on a mat", "is not a text"),
    "nul-at-end": (b"a cat\x00", "is not a text"),
    "binary": (bytes(range(256)) * 4, "is not a text"),
    "png": (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "is not a text"),
    "control": (b"a \x1b[31mred\x1b[0m cat", "is not a text"),
    "half-utf-16": (codecs.BOM_UTF16_LE + b"a\x00b", "is not a text"),
    "false-mark": (codecs.BOM_UTF8 + b"caf\xe9", "is not a text"),
    "a-megabyte": (b"a cat, " * 150_000, "over 64 KiB"),
    "just-too-long": (b"a" * (MAX_BYTES + 1), "over 64 KiB"),
}


@pytest.mark.parametrize("name", READ)
def test_read_as_it_was_meant(name: str, tmp_path: Path) -> None:
    content, text, encoding = READ[name]
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    caption = read_caption(path)
    assert (caption.text, caption.encoding) == (text, encoding)
    assert caption.guessed == (encoding not in ("utf-8", "utf-8-sig"))


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str, tmp_path: Path) -> None:
    content, reason = REFUSED[name]
    path = tmp_path / f"{name}.txt"
    path.write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        read_caption(path)
    assert f"{name}.txt" in caught.value.what and reason in caught.value.what
    assert caught.value.what.endswith(".") and "\n" not in caught.value.what


def test_a_folder_and_a_missing_file_are_no_captions(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.txt"):
        with pytest.raises(DatasetError, match="is not a file"):
            read_caption(path)


texts = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"]), max_size=80)


@given(texts)
def test_utf8_is_always_read_as_such(text: str) -> None:
    assert decode(text.encode()) == (text, "utf-8") or text.startswith("\ufeff")


@pytest.mark.parametrize(
    "text",
    [
        "garçon", "élève", "Noël à la plage", "naïve café", "señor", "mañana", "coração", "são",
        "Ångström", "größe", "jalapeño, piñata", "fünf Jäger", "à côté d’une forêt",
        "“quoted” caption", "it’s a dog’s life", "50 € – “new”…", "déjà vu, très réussi",
    ],
)  # fmt: skip
def test_western_text_is_not_taken_for_japanese(text: str) -> None:
    assert decode(text.encode("cp1252")) == (text, "cp1252")


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    try:
        text, _ = decode(content)
    except ValueError as error:
        assert str(error)
    else:
        assert "\x00" not in text
