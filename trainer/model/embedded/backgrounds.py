"""The places of the world: each a function that paints a whole canvas behind the subject."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from trainer.model.embedded.canvas import WHITE, Canvas, Colour, Pen
from trainer.model.embedded.geometry import arc

TINTS: dict[str, Colour] = {
    "white": (252, 252, 252),
    "light blue": (190, 224, 250),
    "light green": (204, 238, 196),
    "light pink": (252, 214, 226),
    "light yellow": (254, 240, 184),
    "lilac": (218, 206, 244),
}
"""Colours of plain backgrounds."""


def _sky(pen: Pen, colour: Colour) -> None:
    pen.box(-1.2, -1.2, 1.2, 1.2, colour)


def _land(pen: Pen, y: float, colour: Colour) -> None:
    pen.box(-1.2, y, 1.2, 1.3, colour)


def _hill(pen: Pen, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
    pen.polygon(arc(x, y, rx, ry, 180, 360), colour)


def _cloud(pen: Pen, x: float, y: float) -> None:
    pen.polygon(
        [
            *arc(x - 0.16, y, 0.14, 0.1, 90, 250, 8),
            *arc(x, y - 0.06, 0.18, 0.14, 190, 350, 8),
            *arc(x + 0.16, y, 0.14, 0.1, -70, 90, 8),
        ],
        WHITE,
    )


def meadow(pen: Pen, rng: Random) -> None:
    _sky(pen, (164, 216, 250))
    _cloud(pen, rng.choice((-0.6, 0.6)), -0.72)
    _land(pen, 0.34, (122, 200, 92))
    for _ in range(5):
        x, y = rng.uniform(-0.9, 0.9), rng.uniform(0.5, 0.92)
        pen.dab(x, y, 0.055, 0.055, rng.choice(((255, 240, 120), WHITE)))


def beach(pen: Pen, rng: Random) -> None:
    _sky(pen, (176, 226, 250))
    pen.ellipse(rng.choice((-0.66, 0.66)), -0.66, 0.2, 0.2, (255, 214, 70))
    _land(pen, 0.02, (62, 158, 214))
    _land(pen, 0.42, (248, 218, 152))


def snow(pen: Pen, rng: Random) -> None:
    _sky(pen, (150, 180, 214))
    _hill(pen, rng.choice((-0.5, 0.5)), 0.56, 0.9, 0.3, (214, 228, 244))
    _land(pen, 0.44, (244, 248, 254))
    for _ in range(9):
        pen.dab(rng.uniform(-0.95, 0.95), rng.uniform(-0.95, 0.3), 0.05, 0.05, WHITE)


def night(pen: Pen, rng: Random) -> None:
    _sky(pen, (36, 40, 96))
    side = rng.choice((-0.66, 0.66))
    pen.ellipse(side, -0.64, 0.2, 0.2, (252, 240, 190))
    for _ in range(7):
        pen.dab(rng.uniform(-0.95, 0.95), rng.uniform(-0.95, 0.2), 0.035, 0.035, (255, 248, 200))
    _land(pen, 0.52, (58, 74, 116))


def city(pen: Pen, rng: Random) -> None:
    _sky(pen, (250, 206, 170))
    heights = rng.sample((-0.7, -0.45, -0.25, -0.55, -0.1), 5)
    for x, top in zip((-0.84, -0.42, 0.0, 0.42, 0.84), heights, strict=True):
        pen.box(x - 0.19, top, x + 0.19, 1.2, (128, 128, 158))
        for row in range(2):
            pen.dab(x, top + 0.2 + row * 0.26, 0.06, 0.07, (255, 232, 140))
    _land(pen, 0.56, (92, 92, 108))


def forest(pen: Pen, rng: Random) -> None:
    _sky(pen, (176, 222, 178))
    for x in (-0.85, -0.45, 0.0, 0.45, 0.85):
        x += rng.uniform(-0.08, 0.08)
        pen.box(x - 0.06, 0.2, x + 0.06, 0.6, (112, 78, 56))
        pen.polygon(
            [(x - 0.32, 0.32), (x, rng.uniform(-0.9, -0.6)), (x + 0.32, 0.32)], (46, 124, 82)
        )
    _land(pen, 0.5, (96, 146, 74))


def desert(pen: Pen, rng: Random) -> None:
    _sky(pen, (254, 226, 168))
    _hill(pen, rng.uniform(-0.5, 0.5), 0.5, 0.9, 0.42, (238, 170, 98))
    x = rng.choice((-0.74, 0.74))
    pen.line([(x, -0.3), (x, 0.5)], 0.16, (88, 150, 84))
    pen.line([(x, 0.14), (x + 0.2, 0.1), (x + 0.2, -0.12)], 0.12, (88, 150, 84))
    _land(pen, 0.4, (226, 148, 80))


def underwater(pen: Pen, rng: Random) -> None:
    _sky(pen, (52, 146, 204))
    for _ in range(6):
        r = rng.uniform(0.05, 0.09)
        pen.dab(rng.uniform(-0.9, 0.9), rng.uniform(-0.9, 0.2), r, r, (184, 228, 246))
    for x in (-0.82, 0.82):
        pen.line([(x, 1.0), (x - 0.1, 0.62), (x + 0.08, 0.3), (x, 0.0)], 0.13, (50, 160, 110))
    _land(pen, 0.66, (226, 204, 150))


def room(pen: Pen, rng: Random) -> None:
    _sky(pen, rng.choice(((244, 208, 190), (206, 220, 226))))
    x = rng.choice((-0.6, 0.6))
    pen.box(x - 0.28, -0.86, x + 0.28, -0.3, (170, 216, 248))
    pen.mark([(x, -0.86), (x, -0.3)], WHITE, 0.06)
    pen.mark([(x - 0.28, -0.58), (x + 0.28, -0.58)], WHITE, 0.06)
    _land(pen, 0.48, (178, 122, 80))


SCENES: dict[str, tuple[Callable[[Pen, Random], None], tuple[str, ...]]] = {
    "meadow": (meadow, ("in a meadow", "on green grass")),
    "beach": (beach, ("on the beach", "by the sea")),
    "snow": (snow, ("in the snow", "on a snowy day")),
    "night": (night, ("at night", "under the moon")),
    "city": (city, ("in the city", "in a town")),
    "forest": (forest, ("in the forest", "in the woods")),
    "desert": (desert, ("in the desert", "among cactus and sand")),
    "underwater": (underwater, ("under water", "deep in the ocean")),
    "room": (room, ("in a room", "indoors by a window")),
}
"""Each place by name: how it is painted, and how captions say it, the usual way first."""

PLACES: tuple[str, ...] = (*SCENES, *TINTS)
"""Every background by name: nine scenes and the plain colours."""


USUAL_SHARE = 0.75


def place_phrases(place: str) -> tuple[str, ...]:
    """All ways in which captions say where something is, the usual one first."""
    if place in SCENES:
        return SCENES[place][1]
    return f"on a {place} background", f"in front of {place}"


def place_phrase(place: str, rng: Random | None = None) -> str:
    """How a caption says where something is: mostly the usual way, always so without `rng`."""
    usual, *others = place_phrases(place)
    return usual if rng is None or rng.random() < USUAL_SHARE else rng.choice(others)


def paint(canvas: Canvas, place: str, seed: int) -> None:
    """Paints a place over the whole canvas; `seed` moves its clouds, stars and flowers about."""
    pen = Pen(canvas, ground=True)
    if place in SCENES:
        SCENES[place][0](pen, Random(seed))
    else:
        _sky(pen, TINTS[place])
