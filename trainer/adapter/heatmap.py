"""A conflict report as a picture: blocks down the side, measures across, labelled. Pillow only."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from trainer.adapter.compare import Conflict, Overlap

_CELL = (92, 24)
_MARGIN = 12
_TITLE = 30
_FONT_SIZE = 13
_WHITE, _INK = (255, 255, 255), (30, 30, 36)
_APART, _ALIKE, _MUCH = (196, 60, 60), (52, 110, 190), (230, 150, 40)

Colour = tuple[int, int, int]


def draw(report: Conflict) -> Image.Image:
    """The report as an RGB image; numbers are in the cells, so that colour says nothing alone."""
    font = ImageFont.load_default(_FONT_SIZE)
    one, two = report.names
    columns = ("cosine", "reads", "writes", "chance", f"in {one}", f"in {two}")
    rows = {**report.blocks, "all": report.total}
    labels = max(int(font.getlength(name)) for name in rows) + 2 * _MARGIN
    width = max(labels + len(columns) * _CELL[0], int(font.getlength(_title(report)))) + 2 * _MARGIN
    height = 2 * _MARGIN + _TITLE + (len(rows) + 1) * _CELL[1]
    image = Image.new("RGB", (width, height), _WHITE)
    pen = ImageDraw.Draw(image)
    pen.text((_MARGIN, _MARGIN), _title(report), font=font, fill=_INK)
    top = _MARGIN + _TITLE
    for column, name in enumerate(columns):
        place = (labels + column * _CELL[0] + 4, top + 4)
        pen.text(place, _shortened(name, font, _CELL[0] - 8), font=font, fill=_INK)
    for row, (name, overlap) in enumerate(rows.items(), start=1):
        y = top + row * _CELL[1]
        pen.text((_MARGIN, y + 4), name, font=font, fill=_INK)
        for column, (text, colour) in enumerate(_cells(overlap)):
            x = labels + column * _CELL[0]
            pen.rectangle((x, y, x + _CELL[0] - 2, y + _CELL[1] - 2), fill=colour)
            pen.text((x + 6, y + 4), text, font=font, fill=_INK)
    return image


def _title(report: Conflict) -> str:
    return f"{report.names[0]} and {report.names[1]}: where they meet"


def _cells(overlap: Overlap) -> list[tuple[str, Colour]]:
    towards = _ALIKE if overlap.cosine >= 0 else _APART
    return [
        (f"{overlap.cosine:+.2f}", _tint(towards, abs(overlap.cosine))),
        *(
            (f"{value:.0%}", _tint(_MUCH, value))
            for value in (overlap.inputs, overlap.outputs, overlap.chance, *overlap.shares)
        ),
    ]


def _tint(colour: Colour, amount: float) -> Colour:
    """From white at 0 to three quarters of `colour` at 1, on which dark text stays readable."""
    amount = 0.75 * min(max(amount, 0.0), 1.0)
    red, green, blue = (
        round(white + amount * (full - white)) for white, full in zip(_WHITE, colour, strict=True)
    )
    return red, green, blue


def _shortened(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
