"""The things of the world: each a function that draws one thing with a pen, in one colour.

A thing fills about -0.9..0.9 of the pen's coordinates both ways. Its colour is the one a caption
names; everything else about it (wheels, windows, stems) always has the same colours.
"""

from __future__ import annotations

from collections.abc import Callable

from trainer.model.embedded.canvas import INK, WHITE, Colour, Pen, mix
from trainer.model.embedded.geometry import arc, star

CREAM: Colour = (250, 232, 200)
SKY_GLASS: Colour = (176, 222, 246)
GLOW: Colour = (255, 226, 120)
WOOD: Colour = (140, 92, 58)
LEAF: Colour = (84, 170, 74)
BEAK: Colour = (250, 160, 50)
BLUSH: Colour = (250, 140, 150)
STEEL: Colour = (150, 156, 172)


def shade(colour: Colour) -> Colour:
    """The colour of a part that lies in shadow."""
    return mix(colour, INK, 0.3)


def eye(pen: Pen, x: float, y: float, r: float) -> None:
    """A round white eye with a pupil."""
    pen.fine().ellipse(x, y, r, r, WHITE)
    pen.dab(x, y + r * 0.1, r * 0.5, r * 0.56, INK)


def bead(pen: Pen, x: float, y: float, r: float = 0.095) -> None:
    """A plain dark eye."""
    pen.dab(x, y, r, r * 1.2, INK)


def smile(pen: Pen, x: float, y: float, r: float) -> None:
    """A smiling mouth."""
    pen.mark(arc(x, y, r, r * 0.8, 20, 160), INK, 0.085)


def draw_star(pen: Pen, colour: Colour) -> None:
    pen.polygon(star(5, 0.95, 0.45, y=0.06), colour)
    bead(pen, -0.17, 0.0)
    bead(pen, 0.17, 0.0)
    smile(pen, 0, 0.12, 0.17)


def draw_heart(pen: Pen, colour: Colour) -> None:
    left = arc(-0.42, -0.32, 0.46, 0.46, 150, 335)
    right = arc(0.42, -0.32, 0.46, 0.46, 205, 390)
    pen.polygon([*left, *right, (0, 0.88)], colour)
    pen.dab(-0.48, -0.38, 0.14, 0.14, mix(colour, WHITE, 0.65))


def draw_house(pen: Pen, colour: Colour) -> None:
    pen.box(-0.66, -0.1, 0.66, 0.85, colour)
    pen.box(0.28, -0.82, 0.5, -0.3, shade(colour))
    pen.polygon([(-0.92, -0.06), (0, -0.88), (0.92, -0.06)], shade(colour))
    pen.fine().box(-0.46, 0.24, -0.06, 0.85, WOOD)
    pen.fine().box(0.12, 0.2, 0.48, 0.54, GLOW)


def draw_car(pen: Pen, colour: Colour) -> None:
    pen.polygon([(-0.56, 0.0), (-0.36, -0.52), (0.3, -0.52), (0.58, 0.0)], SKY_GLASS)
    pen.mark([(0.0, -0.5), (0.0, 0.0)], INK, 0.08)
    pen.box(-0.94, -0.06, 0.94, 0.44, colour, 0.16)
    pen.dab(0.78, 0.12, 0.1, 0.1, GLOW)
    for x in (-0.5, 0.5):
        pen.ellipse(x, 0.46, 0.27, 0.27, (76, 74, 88))
        pen.dab(x, 0.46, 0.11, 0.11, WHITE)


def draw_cat(pen: Pen, colour: Colour) -> None:
    pen.line([(0.5, 0.7), (0.82, 0.55), (0.8, 0.2)], 0.2, colour)
    pen.ellipse(0, 0.52, 0.52, 0.4, colour)
    for side in (-1, 1):
        pen.polygon([(side * 0.62, -0.95), (side * 0.66, -0.3), (side * 0.14, -0.62)], colour)
        pen.patch([(side * 0.53, -0.72), (side * 0.55, -0.45), (side * 0.32, -0.58)], BLUSH)
    pen.ellipse(0, -0.18, 0.7, 0.54, colour)
    for side in (-1, 1):
        eye(pen, side * 0.28, -0.22, 0.16)
    pen.patch([(-0.09, 0.02), (0.09, 0.02), (0, 0.13)], BLUSH)
    for side in (-1, 1):
        pen.mark([(side * 0.46, 0.08), (side * 0.86, 0.02)], INK, 0.055)


def draw_rabbit(pen: Pen, colour: Colour) -> None:
    for side in (-1, 1):
        pen.ellipse(side * 0.27, -0.55, 0.18, 0.42, colour)
        pen.dab(side * 0.27, -0.52, 0.07, 0.26, BLUSH)
    pen.ellipse(0, 0.62, 0.46, 0.3, colour)
    pen.ellipse(0, 0.14, 0.58, 0.48, colour)
    for side in (-1, 1):
        bead(pen, side * 0.24, 0.06)
    pen.dab(0, 0.22, 0.08, 0.06, BLUSH)
    pen.fine().box(-0.1, 0.32, 0.1, 0.48, WHITE)


def draw_mushroom(pen: Pen, colour: Colour) -> None:
    pen.box(-0.32, -0.06, 0.32, 0.86, CREAM, 0.2)
    pen.polygon(arc(0, 0.08, 0.92, 0.94, 180, 360), colour)
    for x, y, r in ((-0.46, -0.22, 0.16), (0.06, -0.52, 0.18), (0.5, -0.2, 0.15)):
        pen.dab(x, y, r, r, WHITE)
    for side in (-1, 1):
        bead(pen, side * 0.14, 0.36, 0.07)
    smile(pen, 0, 0.48, 0.12)


def draw_tree(pen: Pen, colour: Colour) -> None:
    pen.box(-0.17, 0.2, 0.17, 0.9, WOOD)
    cloud = [
        *arc(-0.42, 0.06, 0.44, 0.36, 70, 240),
        *arc(0, -0.42, 0.5, 0.46, 190, 350),
        *arc(0.42, 0.06, 0.44, 0.36, -60, 110),
    ]
    pen.polygon(cloud, colour)
    for x, y in ((-0.4, 0.08), (0.1, -0.42), (0.36, 0.12)):
        pen.dab(x, y, 0.1, 0.1, mix(colour, WHITE, 0.5))


def draw_fish(pen: Pen, colour: Colour) -> None:
    pen.polygon([(0.36, 0), (0.92, -0.48), (0.8, 0), (0.92, 0.48)], shade(colour))
    pen.polygon([(-0.2, -0.3), (0.12, -0.76), (0.34, -0.26)], shade(colour))
    pen.ellipse(-0.16, 0, 0.72, 0.5, colour)
    eye(pen, -0.48, -0.12, 0.17)
    smile(pen, -0.62, 0.12, 0.15)
    pen.mark(arc(0.0, 0, 0.2, 0.32, -60, 60), shade(colour), 0.09)


def draw_boat(pen: Pen, colour: Colour) -> None:
    pen.line([(0, -0.84), (0, 0.3)], 0.09, WOOD)
    pen.polygon([(0.1, -0.8), (0.1, 0.18), (0.74, 0.18)], CREAM)
    pen.polygon([(-0.1, -0.56), (-0.1, 0.18), (-0.6, 0.18)], CREAM)
    pen.polygon([(-0.94, 0.3), (0.94, 0.3), (0.62, 0.84), (-0.62, 0.84)], colour)


def draw_flower(pen: Pen, colour: Colour) -> None:
    pen.line([(0, 0.1), (0, 0.88)], 0.14, LEAF)
    pen.ellipse(0.32, 0.62, 0.24, 0.12, LEAF)
    for x, y, *_ in star(5, 0.42, 0.42, y=-0.28)[::2]:
        pen.ellipse(x, y, 0.29, 0.29, colour)
    pen.ellipse(0, -0.28, 0.27, 0.27, GLOW)


def draw_bird(pen: Pen, colour: Colour) -> None:
    pen.polygon([(0.4, 0.1), (0.95, -0.2), (0.92, 0.28), (0.5, 0.4)], shade(colour))
    for x in (-0.14, 0.12):
        pen.mark([(x, 0.5), (x, 0.88)], BEAK, 0.09)
    pen.polygon([(-0.62, -0.42), (-0.98, -0.24), (-0.62, -0.12)], BEAK)
    pen.ellipse(0.06, 0.2, 0.6, 0.44, colour)
    pen.ellipse(-0.34, -0.28, 0.38, 0.38, colour)
    pen.patch([*arc(0.02, 0.2, 0.34, 0.3, -40, 140)], colour)
    pen.ellipse(0.2, 0.14, 0.3, 0.2, shade(colour))
    eye(pen, -0.42, -0.34, 0.14)


def draw_cup(pen: Pen, colour: Colour) -> None:
    pen.line(arc(0.46, 0.22, 0.36, 0.3, -80, 80), 0.15, colour)
    pen.polygon([(-0.66, -0.24), (0.5, -0.24), (0.4, 0.84), (-0.56, 0.84)], colour)
    pen.ellipse(-0.08, -0.24, 0.58, 0.16, CREAM)
    for x in (-0.3, 0.12):
        pen.mark([(x, -0.5), (x + 0.09, -0.64), (x - 0.03, -0.76), (x + 0.06, -0.9)], STEEL, 0.09)


def draw_rocket(pen: Pen, colour: Colour) -> None:
    pen.polygon([(-0.2, 0.56), (0, 0.96), (0.2, 0.56)], BEAK)
    for side in (-1, 1):
        pen.polygon([(side * 0.3, 0.08), (side * 0.72, 0.62), (side * 0.24, 0.54)], shade(colour))
    pen.polygon(
        [
            (0, -0.96),
            (0.3, -0.5),
            (0.38, 0.0),
            (0.28, 0.58),
            (-0.28, 0.58),
            (-0.38, 0.0),
            (-0.3, -0.5),
        ],
        colour,
    )
    pen.fine().ellipse(0, -0.16, 0.2, 0.2, SKY_GLASS)


def draw_umbrella(pen: Pen, colour: Colour) -> None:
    pen.line([(0, -0.2), (0, 0.68), *arc(0.16, 0.68, 0.16, 0.18, 180, 20, 6)], 0.1, WOOD)
    dome = arc(0, 0.06, 0.92, 0.86, 180, 360)
    scallops = [point for x in (0.62, 0.0, -0.62) for point in arc(x, 0.06, 0.3, 0.16, 0, -180, 6)]
    pen.polygon([*dome, *scallops], colour)
    for side in (-1, 1):
        pen.mark(arc(0, 0.04, 0.3, 0.82, 268 + side * 4, 270 + side * 88, 8), shade(colour), 0.07)


def draw_robot(pen: Pen, colour: Colour) -> None:
    pen.mark([(0, -0.6), (0, -0.86)], INK, 0.09)
    pen.dab(0, -0.86, 0.1, 0.1, (236, 70, 70))
    for side in (-1, 1):
        pen.line([(side * 0.5, 0.28), (side * 0.8, 0.5)], 0.17, STEEL)
        pen.line([(side * 0.22, 0.7), (side * 0.22, 0.88)], 0.2, STEEL)
    pen.box(-0.48, 0.1, 0.48, 0.74, colour, 0.08)
    pen.box(-0.6, -0.64, 0.6, 0.06, colour, 0.12)
    pen.fine().box(-0.44, -0.48, 0.44, -0.1, SKY_GLASS, 0.06)
    for side in (-1, 1):
        pen.dab(side * 0.2, -0.28, 0.09, 0.11, INK)
    pen.dab(0, 0.4, 0.15, 0.15, GLOW)


def draw_teapot(pen: Pen, colour: Colour) -> None:
    """Held back from the base's training: a pot with a zigzag band, for an adapter to learn."""
    pen.line([(0.5, 0.4), (0.78, 0.1), (0.92, -0.32)], 0.22, colour)
    pen.line(arc(-0.5, 0.2, 0.36, 0.34, 90, 270), 0.15, BEAK)
    pen.ellipse(0, 0.24, 0.64, 0.56, colour)
    zigzag = [(-0.58, 0.24), (-0.36, 0.04), (-0.12, 0.3), (0.12, 0.04), (0.36, 0.3), (0.58, 0.1)]
    pen.mark(zigzag, GLOW, 0.17)
    pen.ellipse(0, -0.3, 0.4, 0.14, BEAK)
    pen.ellipse(0, -0.52, 0.14, 0.14, (236, 70, 90))


THINGS: dict[str, Callable[[Pen, Colour], None]] = {
    "star": draw_star,
    "heart": draw_heart,
    "house": draw_house,
    "car": draw_car,
    "cat": draw_cat,
    "rabbit": draw_rabbit,
    "mushroom": draw_mushroom,
    "tree": draw_tree,
    "fish": draw_fish,
    "boat": draw_boat,
    "flower": draw_flower,
    "bird": draw_bird,
    "cup": draw_cup,
    "rocket": draw_rocket,
    "umbrella": draw_umbrella,
    "robot": draw_robot,
}
"""What the base's training draws besides creatures, by the noun that captions use."""
