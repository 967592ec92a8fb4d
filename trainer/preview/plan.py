"""The plan of a grid: its axes, its cells, and which of them are drawn together. Pure functions.

The first axis runs along the columns, the second along the rows, the third over the sheets.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.preview.request import Drawing

LARGEST_STRIP = 8  # images in one batch
MOST_CELLS = 1000


@dataclass(frozen=True)
class Axis:
    """What changes along one direction: for each value its label, and the fields of the `Drawing`
    that it sets."""

    name: str
    labels: tuple[str, ...]
    changes: tuple[Mapping[str, Any], ...]

    @property
    def titles(self) -> tuple[str, ...]:
        """The labels with the axis' name; a prompt needs none."""
        if self.name == "prompt":
            return self.labels
        return tuple(f"{self.name} {label}" for label in self.labels)


@dataclass(frozen=True)
class Cell:
    """One image: its place as (sheet, row, column), and a drawing with a strip of one factor."""

    place: tuple[int, int, int]
    drawing: Drawing


def shape(axes: Sequence[Axis]) -> tuple[int, int, int]:
    """The number of sheets, rows and columns."""
    columns, rows, sheets = (*(len(axis.labels) for axis in axes), 1, 1, 1)[:3]
    return sheets, rows, columns


def cells(drawing: Drawing, axes: Sequence[Axis]) -> tuple[Cell, ...]:
    """Every image of a grid, sheet by sheet and row by row.

    Raises:
        ValidationError: if a value is out of the bounds of its field.
    """
    found = []
    for sheet, row, column in itertools.product(*map(range, shape(axes))):
        fields = dict(drawing)
        for axis, index in zip(axes, (column, row, sheet), strict=False):
            fields |= axis.changes[index]
        found.append(Cell((sheet, row, column), Drawing.model_validate(fields)))
    return tuple(found)


def strips(wanted: Sequence[Cell]) -> Iterator[list[Cell]]:
    """The cells in batches: those that differ in nothing but the factor on the strengths are drawn
    together, in the order in which the first of each comes."""
    groups: dict[str, list[Cell]] = {}
    for cell in wanted:
        same = cell.drawing.model_dump_json(exclude={"strip"})
        groups.setdefault(same, []).append(cell)
    for group in groups.values():
        for first in range(0, len(group), LARGEST_STRIP):
            yield group[first : first + LARGEST_STRIP]


def together(strip: Sequence[Cell]) -> Drawing:
    """The one drawing whose images are the cells of a strip."""
    factors = tuple(cell.drawing.strip[0] for cell in strip)
    return strip[0].drawing.model_copy(update={"strip": factors})
