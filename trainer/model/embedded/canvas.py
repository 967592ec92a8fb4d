"""A supersampled canvas, and the manners (drawing styles) in which shapes are put on it.

Coordinates are fractions of the picture: x to the right and y downwards, both 0..1. A `Pen` is a
canvas seen from a place in it: its own coordinates reach from -1 to 1 around a centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from trainer.model.embedded.geometry import Point, oval, rounded

Colour = tuple[int, int, int]


INK: Colour = (34, 30, 48)
WHITE: Colour = (255, 255, 255)
COLOURS: dict[str, Colour] = {
    "red": (226, 48, 52),
    "orange": (246, 140, 36),
    "yellow": (250, 212, 48),
    "green": (66, 176, 74),
    "blue": (48, 112, 224),
    "purple": (142, 72, 196),
    "pink": (248, 128, 178),
    "brown": (146, 92, 54),
    "white": (246, 246, 246),
    "black": (70, 70, 80),
}
"""The ten colours that captions name, as sRGB bytes."""

SUPERSAMPLING = 4


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """The colour `share` (0..1) of the way from `a` to `b`."""
    red, green, blue = (round(p + (q - p) * share) for p, q in zip(a, b, strict=True))
    return red, green, blue


@dataclass(frozen=True)
class Manner:
    """How a shape's colour becomes its fill and its outline.

    A fill is mixed with `wash` by `wash_share`. An outline is `line`, or, where that is None, the
    shape's own colour mixed with `line_toward` by `line_share`. Widths are fractions of the
    picture. `ground_…` is for backgrounds.
    """

    name: str
    wash: Colour = WHITE
    wash_share: float = 0.0
    line: Colour | None = INK
    line_toward: Colour = WHITE
    line_share: float = 0.0
    line_width: float = 0.034
    ground_line_width: float = 0.0
    ground_wash_share: float | None = None
    dark: bool = False
    dotted: bool = False
    glow: float = 0.0

    def fill(self, colour: Colour, ground: bool = False) -> Colour:
        """The fill of a shape, or of a piece of the background, that has this colour."""
        share = self.wash_share
        if ground and self.ground_wash_share is not None:
            share = self.ground_wash_share
        return mix(colour, self.wash, share)

    def outline(self, colour: Colour) -> Colour:
        """The outline of a shape that has this colour."""
        if self.line is not None:
            return self.line
        if self.dark and sum(colour) < 260:  # a dark line would vanish on a dark ground
            colour = mix(colour, WHITE, 0.45)
        return mix(colour, self.line_toward, self.line_share)


MANNERS: dict[str, Manner] = {
    manner.name: manner
    for manner in (
        Manner("dark outline"),
        Manner("flat", line_width=0.0),
        Manner("white outline", line=WHITE, line_width=0.042),
        Manner(
            "pastel", wash_share=0.5, line=None, line_toward=INK, line_share=0.35, line_width=0.022
        ),
        Manner("dotted", dotted=True),
        Manner(
            "sketch",
            wash=(247, 242, 230),
            wash_share=0.6,
            line=(74, 70, 84),
            line_width=0.022,
            ground_line_width=0.012,
            ground_wash_share=0.8,
        ),
        Manner(
            "chalk",
            wash=(44, 62, 58),
            wash_share=0.72,
            line=None,
            line_share=0.3,
            line_width=0.03,
            ground_line_width=0.016,
            ground_wash_share=0.8,
            dark=True,
        ),
    )
}
"""The manners of the base's training, by the name captions use."""

VEX = Manner(
    "vex",
    wash=(10, 6, 22),
    wash_share=0.94,
    line=None,
    line_share=0.0,
    line_width=0.036,
    ground_line_width=0.014,
    ground_wash_share=0.97,
    dark=True,
    glow=0.016,
)
"""Glowing outlines on black: held back from the base's training, for adapters to learn."""


class Canvas:
    """A square picture under way, `SUPERSAMPLING` times larger than asked for."""

    def __init__(self, size: int, manner: Manner) -> None:
        self.size = size
        self.pixels = size * SUPERSAMPLING
        self.manner = manner
        self.image = Image.new("RGB", (self.pixels, self.pixels), manner.fill(WHITE, ground=True))
        self.pencil = ImageDraw.Draw(self.image)

    def finish(self) -> Image.Image:
        """The picture at the size asked for, with smooth edges and, in some manners, a glow."""
        image = self.image
        if self.manner.glow:
            halo = image.filter(ImageFilter.GaussianBlur(self.manner.glow * self.pixels))
            image = ImageChops.add(image, halo)
        return image.reduce(SUPERSAMPLING)


@cache
def _dots(pixels: int) -> Image.Image:
    """A mask of round dots in staggered rows, 9 to the width of the picture."""
    mask = Image.new("L", (pixels, pixels), 0)
    pencil = ImageDraw.Draw(mask)
    step, radius = pixels / 9, pixels / 9 * 0.3
    for row in range(20):
        for column in range(11):
            x, y = (column + 0.5 * (row % 2)) * step, row * step / 2
            pencil.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return mask


@dataclass(frozen=True)
class Pen:
    """Draws shapes on a canvas around `centre`; 1 in its coordinates is `reach` of the picture.

    `ground` marks a pen for backgrounds; `weight` scales its outlines.
    """

    canvas: Canvas
    centre: Point = (0.5, 0.5)
    reach: float = 0.5
    mirrored: bool = False
    ground: bool = False
    weight: float = 1.0

    def fine(self) -> Pen:
        """The same pen with thinner outlines, for small parts."""
        return replace(self, weight=self.weight * 0.62)

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        """A closed shape, filled and outlined in the canvas's manner."""
        self._shape([self._pixel(*point) for point in points], colour)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """An ellipse around (x, y) with radii `rx` and `ry`, filled and outlined."""
        self._shape(self._box(x, y, rx, ry), colour)

    def box(
        self, x0: float, y0: float, x1: float, y1: float, colour: Colour, radius: float = 0.0
    ) -> None:
        """An upright rectangle, its corners rounded by `radius`."""
        self.polygon(rounded(x0, y0, x1, y1, radius), colour)

    def line(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """A limb: an open line of `width`, round at both ends, filled and outlined."""
        manner = self.canvas.manner
        pixels = [self._pixel(*point) for point in points]
        border = manner.line_width * self.weight * self.canvas.pixels
        thick = width * self.reach * self.canvas.pixels
        if border and not self.ground:
            self._stroke(pixels, thick + border, manner.outline(colour))
            thick -= border * 0.6
        self._stroke(pixels, thick, manner.fill(colour, self.ground))

    def dab(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """A small ellipse without an outline: a pupil, a spot, a window."""
        self.canvas.pencil.ellipse(self._corners(x, y, rx, ry), fill=self._detail(colour))

    def patch(self, points: Sequence[Point], colour: Colour) -> None:
        """A small shape without an outline."""
        pixels = [self._pixel(*point) for point in points]
        self.canvas.pencil.polygon(pixels, fill=self._detail(colour))

    def mark(self, points: Sequence[Point], colour: Colour = INK, width: float = 0.08) -> None:
        """A bare line without an outline: a mouth, a whisker."""
        pixels = [self._pixel(*point) for point in points]
        self._stroke(pixels, width * self.reach * self.canvas.pixels, self._detail(colour))

    def _detail(self, colour: Colour) -> Colour:
        manner = self.canvas.manner
        if manner.dark:
            return manner.outline(WHITE if colour == INK else colour)
        if colour == INK:
            return mix(INK, manner.wash, manner.wash_share * 0.4)
        return manner.fill(colour, self.ground)

    def _pixel(self, x: float, y: float) -> Point:
        sign = -1 if self.mirrored else 1
        scale = self.canvas.pixels
        return (
            (self.centre[0] + sign * x * self.reach) * scale,
            (self.centre[1] + y * self.reach) * scale,
        )

    def _corners(self, x: float, y: float, rx: float, ry: float) -> tuple[float, ...]:
        px, py = self._pixel(x, y)
        w, h = (r * self.reach * self.canvas.pixels for r in (rx, ry))
        return px - w, py - h, px + w, py + h

    def _box(self, x: float, y: float, rx: float, ry: float) -> list[Point]:
        return [self._pixel(px, py) for px, py in oval(x, y, rx, ry)]

    def _shape(self, pixels: list[Point], colour: Colour) -> None:
        canvas, manner = self.canvas, self.canvas.manner
        fill = manner.fill(colour, self.ground)
        if manner.dotted and not self.ground:
            self._dotted(pixels, colour)
        else:
            canvas.pencil.polygon(pixels, fill=fill)
        width = manner.ground_line_width if self.ground else manner.line_width
        if width:
            self._stroke(
                [*pixels, pixels[0], pixels[1]],
                width * self.weight * canvas.pixels,
                manner.outline(colour),
            )

    def _dotted(self, pixels: list[Point], colour: Colour) -> None:
        canvas = self.canvas
        canvas.pencil.polygon(pixels, fill=mix(colour, WHITE, 0.62))
        inside = Image.new("L", canvas.image.size, 0)
        ImageDraw.Draw(inside).polygon(pixels, fill=255)
        canvas.image.paste(colour, mask=ImageChops.multiply(inside, _dots(canvas.pixels)))

    def _stroke(self, pixels: list[Point], width: float, colour: Colour) -> None:
        width = max(1.0, width)
        self.canvas.pencil.line(pixels, fill=colour, width=round(width), joint="curve")
        for x, y in (pixels[0], pixels[-1]):
            r = width / 2 - 0.5
            self.canvas.pencil.ellipse((x - r, y - r, x + r, y + r), fill=colour)
