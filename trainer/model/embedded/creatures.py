"""Creatures made of parts: what they have, and how it is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from trainer.model.embedded.canvas import COLOURS, INK, WHITE, Colour, Pen, mix
from trainer.model.embedded.geometry import Point, arc, oval, rounded

Body = Literal["round", "tall", "square", "cone"]
Head = Literal["no ears", "round ears", "pointed ears", "horns", "antennae"]
Crest = Literal["no crest", "spikes", "a tuft"]
Mouth = Literal["smile", "fangs", "open mouth"]
Marks = Literal["plain", "spots", "stripes"]

BODIES: tuple[Body, ...] = get_args(Body)
HEADS: tuple[Head, ...] = get_args(Head)
CRESTS: tuple[Crest, ...] = get_args(Crest)
MOUTHS: tuple[Mouth, ...] = get_args(Mouth)
MARKS: tuple[Marks, ...] = get_args(Marks)


@dataclass(frozen=True)
class Creature:
    """A creature: every part by name, colours by their names in `COLOURS`.

    `eyes` is 1..3. `accent` colours ears or horns, crest and marks; `belly` is None or the colour
    of a patch on the belly; `crest_colour`, where set, sets the crest apart from the accent.
    """

    colour: str
    body: Body = "round"
    eyes: int = 2
    head: Head = "no ears"
    crest: Crest = "no crest"
    mouth: Mouth = "smile"
    marks: Marks = "plain"
    accent: str = "yellow"
    belly: str | None = None
    crest_colour: str | None = None


def draw_creature(pen: Pen, creature: Creature) -> None:
    """Draws a creature; it fills about -0.9..0.9 of the pen's coordinates both ways."""
    colour, accent = COLOURS[creature.colour], COLOURS[creature.accent]
    width, top = _FRAMES[creature.body]
    _draw_crest(pen, creature.crest, top, COLOURS[creature.crest_colour or creature.accent])
    _draw_head(pen, creature.head, width, top, accent)
    for side in (-1, 1):
        pen.ellipse(side * 0.28, 0.84, 0.2, 0.11, mix(colour, INK, 0.25))
        pen.line([(side * (width - 0.06), 0.3), (side * (width + 0.16), 0.44)], 0.2, colour)
    pen.polygon(_outline(creature.body, width, top), colour)
    if creature.belly:
        pen.dab(0, 0.52, width * 0.58, 0.25, COLOURS[creature.belly])
    _draw_marks(pen, creature.marks, width, top, accent)
    level = top + (0.46 if creature.body == "cone" else 0.4)
    _draw_eyes(pen, creature.eyes, level)
    _draw_mouth(pen, creature.mouth, level + 0.36)


_FRAMES: dict[Body, tuple[float, float]] = {
    "round": (0.66, -0.5),
    "tall": (0.48, -0.62),
    "square": (0.6, -0.46),
    "cone": (0.66, -0.54),
}
"""Half width and top of each body, in the pen's coordinates."""


def _outline(body: Body, width: float, top: float) -> list[Point]:
    bottom, middle = 0.84, (0.84 + top) / 2
    if body == "square":
        return rounded(-width, top, width, bottom, 0.16)
    if body == "tall":
        return rounded(-width, top, width, bottom, width - 0.02)
    if body == "cone":
        foot = [
            *arc(width - 0.18, bottom - 0.18, 0.2, 0.18, 0, 90, 6),
            *arc(0.18 - width, bottom - 0.18, 0.2, 0.18, 90, 180, 6),
        ]
        return [*arc(0, top + 0.36, 0.38, 0.36, 195, 345, 10), *foot]
    return oval(0, middle, width, (bottom - top) / 2)


def _draw_head(pen: Pen, head: Head, width: float, top: float, accent: Colour) -> None:
    spread, root = (0.36, top + 0.2) if width < 0.5 else (0.46, top + 0.22)
    for side in (-1, 1):
        if head == "round ears":
            pen.ellipse(side * (spread + 0.06), root - 0.12, 0.23, 0.23, accent)
        elif head == "pointed ears":
            pen.polygon(
                [
                    (side * (spread + 0.2), root + 0.14),
                    (side * (spread + 0.2), root - 0.48),
                    (side * (spread - 0.26), root - 0.04),
                ],
                accent,
            )
        elif head == "horns":
            outer = arc(side * (spread - 0.02), root - 0.36, side * 0.42, 0.38, 80, -20, 6)
            inner = arc(side * (spread + 0.06), root - 0.46, side * 0.34, 0.26, -5, 110, 6)
            pen.polygon([*outer, *inner, (side * (spread - 0.2), root + 0.1)], accent)
        elif head == "antennae":
            tip = (side * (spread + 0.12), root - 0.38)
            pen.line([(side * (spread - 0.1), root), tip], 0.06, INK)
            pen.ellipse(side * (spread + 0.14), root - 0.42, 0.14, 0.14, accent)


def _draw_crest(pen: Pen, crest: Crest, top: float, colour: Colour) -> None:
    if crest == "spikes":
        pen.polygon(
            [
                (-0.3, top + 0.25),
                (-0.34, top - 0.16),
                (-0.15, top - 0.04),
                (0, top - 0.34),
                (0.15, top - 0.04),
                (0.34, top - 0.16),
                (0.3, top + 0.25),
            ],
            colour,
        )
    elif crest == "a tuft":
        pen.ellipse(0, top - 0.06, 0.2, 0.24, colour)


def _draw_marks(pen: Pen, marks: Marks, width: float, top: float, colour: Colour) -> None:
    side = width * 0.72
    if marks == "spots":
        for x, y in ((-side, 0.34), (side, 0.22), (-side * 0.72, 0.62), (side * 0.7, 0.6)):
            pen.dab(x, y, 0.09, 0.09, colour)
    elif marks == "stripes":
        for y in (0.3, 0.52):
            for sign in (-1, 1):
                pen.mark([(sign * (width - 0.1), y), (sign * (width - 0.3), y)], colour, 0.11)


def _draw_eyes(pen: Pen, count: int, y: float) -> None:
    places, radius = {1: ((0.0,), 0.25), 2: ((-0.22, 0.22), 0.18)}.get(
        count, ((-0.33, 0.0, 0.33), 0.16)
    )
    for x in places:
        pen.fine().ellipse(x, y, radius, radius, WHITE)
        pen.dab(x, y + 0.02, radius * 0.5, radius * 0.56, INK)


def _draw_mouth(pen: Pen, mouth: Mouth, y: float) -> None:
    if mouth == "smile":
        pen.mark(arc(0, y - 0.08, 0.22, 0.18, 15, 165), INK, 0.085)
    elif mouth == "open mouth":
        pen.dab(0, y + 0.02, 0.14, 0.13, INK)
    else:
        pen.mark([(-0.24, y - 0.04), (0.24, y - 0.04)], INK, 0.085)
        for x in (-0.12, 0.12):
            pen.patch([(x - 0.07, y - 0.03), (x + 0.07, y - 0.03), (x, y + 0.13)], WHITE)
