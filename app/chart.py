"""The loss curve as an SVG drawing: light enough to be sent whole once a second."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from trainer.events import Validated

MAX_POINTS = 400
_FEWEST_SMOOTHED = 8.0
_WIDTH, _HEIGHT = 720, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 24, 14, 34
Point = tuple[float, float]


def thinned(points: Sequence[Point], at_most: int = MAX_POINTS) -> list[Point]:
    """At most that many points: means over equal stretches, the last point kept as it is."""
    if len(points) <= at_most:
        return list(points)
    body, last = points[:-1], points[-1]
    stretch = math.ceil(len(body) / (at_most - 1))
    groups = [body[i : i + stretch] for i in range(0, len(body), stretch)]
    means = [(group[-1][0], math.fsum(y for _, y in group) / len(group)) for group in groups]
    return [*means, last]


def smoothed(points: Sequence[Point], share: float = 0.05) -> list[Point]:
    """An exponential average over about `share` of the points, unbiased at its beginning."""
    keep = 1 - 1 / max(_FEWEST_SMOOTHED, share * len(points))
    total = weight = 0.0
    result = []
    for x, y in points:
        total = keep * total + (1 - keep) * y
        weight = keep * weight + (1 - keep)
        result.append((x, total / weight))
    return result


def loss_chart(
    losses: Sequence[tuple[int, float]],
    validations: Sequence[Validated],
    steps: int,
    logarithmic: bool = False,
) -> Markup:
    """Raw and smoothed training loss, with the held-out loss as dots."""
    raw = [(float(x), y) for x, y in losses if math.isfinite(y) and y > 0]
    held_out = [(float(v.step), v.held_out) for v in validations if v.held_out is not None]
    if len(raw) < 2:
        return Markup('<div class="chart-empty">The curve begins with the first steps.</div>')
    fair = smoothed(raw)
    axes = _Axes.around([*fair, *held_out], raw, max(steps, int(raw[-1][0])), logarithmic)
    return Markup(
        '<figure class="chart"><svg viewBox="0 0 {w} {h}" role="img" '
        'aria-label="Loss by step; now {now}">{grid}'
        '<polyline class="raw" points="{raw}"/><polyline class="fair" points="{fair}"/>'
        "{dots}</svg>{legend}</figure>"
    ).format(
        w=_WIDTH,
        h=_HEIGHT,
        now=f"{fair[-1][1]:.4f}",
        grid=axes.grid(),
        raw=axes.path(thinned(raw)),
        fair=axes.path(thinned(fair)),
        dots=axes.dots(held_out),
        legend=_legend(bool(held_out)),
    )


class _Axes:
    """Where values lie on the drawing."""

    def __init__(self, last: float, low: float, high: float, logarithmic: bool) -> None:
        self.last = last
        self.low, self.high = low, high
        self.logarithmic = logarithmic

    @classmethod
    def around(
        cls, fair: Sequence[Point], raw: Sequence[Point], steps: int, logarithmic: bool
    ) -> _Axes:
        """Axes that show the smooth curve whole and all but the outliers of the raw one."""
        ordered = sorted(y for _, y in raw)
        low = min(ordered[len(ordered) // 50], *(y for _, y in fair))
        high = max(ordered[-1 - len(ordered) // 50], *(y for _, y in fair))
        margin = (high - low) * 0.08 or high * 0.1
        floor = low * 0.9 if logarithmic else max(0.0, low - margin)
        return cls(float(steps), floor, high + margin, logarithmic)

    def x(self, step: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / max(self.last, 1.0)

    def y(self, loss: float) -> float:
        low, high = self._scaled(self.low), self._scaled(self.high)
        share = (self._scaled(loss) - low) / ((high - low) or 1.0)
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - min(max(share, 0.0), 1.0))

    def path(self, points: Sequence[Point]) -> str:
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)

    def dots(self, points: Sequence[Point]) -> Markup:
        return Markup("").join(
            Markup(
                '<circle class="held-out" cx="{x}" cy="{y}" r="5"><title>Held out, step {step}: '
                "{loss}</title></circle>"
            ).format(x=f"{self.x(x):.1f}", y=f"{self.y(y):.1f}", step=int(x), loss=f"{y:.4f}")
            for x, y in points
        )

    def grid(self) -> Markup:
        lines = []
        for loss in _ticks(self.low, self.high):
            lines.append(
                Markup(
                    '<line class="grid" x1="{l}" x2="{r}" y1="{y}" y2="{y}"/>'
                    '<text class="tick" x="{t}" y="{y}" dy="4" text-anchor="end">{loss}</text>'
                ).format(l=_LEFT, r=_WIDTH - _RIGHT, t=_LEFT - 8, y=f"{self.y(loss):.1f}",
                         loss=f"{loss:g}")
            )  # fmt: skip
        for step in _ticks(0, self.last):
            lines.append(
                Markup(
                    '<text class="tick" x="{x}" y="{y}" text-anchor="middle">{step}</text>'
                ).format(x=f"{self.x(step):.1f}", y=_HEIGHT - 8, step=f"{step:g}")
            )
        return Markup("").join(lines)

    def _scaled(self, loss: float) -> float:
        return math.log(max(loss, 1e-12)) if self.logarithmic else loss


def _ticks(low: float, high: float) -> list[float]:
    """Some three to seven round numbers between two bounds."""
    rough = (high - low) / 4
    if rough <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [round((first + i) * step, 12) for i in range(count)]


def _legend(held_out: bool) -> Markup:
    dots = Markup('<span class="key held-out">held-out images</span>') if held_out else ""
    return Markup(
        '<figcaption><span class="key fair">loss, smoothed</span>'
        '<span class="key raw">loss</span>{}</figcaption>'
    ).format(dots)
