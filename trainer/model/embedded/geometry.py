"""Outlines as lists of points: pure functions, in the coordinates of whoever draws them."""

from __future__ import annotations

from math import cos, pi, sin

Point = tuple[float, float]


def oval(x: float, y: float, rx: float, ry: float, steps: int = 40) -> list[Point]:
    """An ellipse around (x, y)."""
    return [
        (x + rx * cos(2 * pi * i / steps), y + ry * sin(2 * pi * i / steps)) for i in range(steps)
    ]


def arc(
    x: float, y: float, rx: float, ry: float, start: float, end: float, steps: int = 14
) -> list[Point]:
    """Part of an ellipse, from `start` to `end` degrees; 0 is right and 90 is down."""
    angles = (start + (end - start) * i / steps for i in range(steps + 1))
    return [(x + rx * cos(pi * a / 180), y + ry * sin(pi * a / 180)) for a in angles]


def rounded(x0: float, y0: float, x1: float, y1: float, radius: float) -> list[Point]:
    """An upright rectangle with corners rounded by `radius`."""
    if radius <= 0:
        return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    corners = ((x1, y0, -1, 1, -90), (x1, y1, -1, -1, 0), (x0, y1, 1, -1, 90), (x0, y0, 1, 1, 180))
    points: list[Point] = []
    for x, y, inward_x, inward_y, start in corners:
        points += arc(
            x + inward_x * radius, y + inward_y * radius, radius, radius, start, start + 90, 6
        )
    return points


def star(points: int, outer: float, inner: float, x: float = 0.0, y: float = 0.0) -> list[Point]:
    """A star with its first point upwards; its points reach `outer`, its valleys `inner`."""
    return [
        (x + r * sin(pi * i / points), y - r * cos(pi * i / points))
        for i in range(2 * points)
        for r in ((outer, inner)[i % 2],)
    ]
