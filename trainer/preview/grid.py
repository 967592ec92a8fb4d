"""Sheets of images with labelled axes. Pillow only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from trainer.files import replace_atomically

NO_TEXTS: Mapping[str, str] = {}
_PAPER = (250, 248, 244)
_INK = (40, 38, 35)
_SMALLEST_CELL = 192  # pixels; smaller images are enlarged by a whole factor


def sheet(
    rows: Sequence[Sequence[Image.Image]],
    column_labels: Sequence[str],
    row_labels: Sequence[str],
    title: str = "",
) -> Image.Image:
    """A grid of equally large images, columns and rows labelled.

    `rows[r][c]` stands under `column_labels[c]`, with `row_labels[r]` above its row.
    """
    images = [[_enlarged(image) for image in row] for row in rows]
    cell_width, cell_height = images[0][0].size
    text_height = max(14, cell_width // 14)
    font = ImageFont.load_default(size=text_height)
    line = round(text_height * 1.6)
    margin = line // 2
    width = margin + len(column_labels) * (cell_width + margin)
    width = max(width, round(font.getlength(title)) + 2 * margin)
    row_height = line + cell_height + margin
    head = margin + (line if title else 0) + line
    page = Image.new("RGB", (width, head + len(rows) * row_height), _PAPER)
    draw = ImageDraw.Draw(page)
    if title:
        draw.text((margin, margin // 2), title, _INK, font)
    for column, label in enumerate(column_labels):
        center = margin + column * (cell_width + margin) + cell_width // 2
        label = _cut(label, font, cell_width)
        draw.text((center, head - line // 2), label, _INK, font, anchor="mm")
    for number, (row, label) in enumerate(zip(images, row_labels, strict=True)):
        top = head + number * row_height
        draw.text((margin, top + line // 2), _cut(label, font, width), _INK, font, anchor="lm")
        for column, image in enumerate(row):
            page.paste(image, (margin + column * (cell_width + margin), top + line))
    return page


def save_png(image: Image.Image, path: Path, texts: Mapping[str, str] = NO_TEXTS) -> None:
    """Writes a PNG, whole or not at all, with chunks of text by their keywords."""
    info = PngImagePlugin.PngInfo()
    for keyword, text in texts.items():
        info.add_text(keyword, text)
    replace_atomically(path, lambda temporary: image.save(temporary, format="PNG", pnginfo=info))


def _enlarged(image: Image.Image) -> Image.Image:
    factor = -(-_SMALLEST_CELL // image.width)
    if factor <= 1:
        return image
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.LANCZOS)


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    text = " ".join(text.split())
    if font.getlength(text) <= width * 0.95:
        return text
    while text and font.getlength(text + "…") > width * 0.95:
        text = text[:-1]
    return text + "…"
