"""Drawing a grid cell by cell into a folder, from which a stopped one goes on.

A cell is a file whose name is a hash of its recipe, so whatever has been drawn before, by this
command or another, is not drawn again. The sheets are made from the cells, again and again while
they come.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from trainer.preview.grid import save_png, sheet
from trainer.preview.plan import Axis, Cell, shape, strips, together
from trainer.preview.recipe import Layout, Recipe, recipe_of

if TYPE_CHECKING:
    from trainer.preview.session import Session

_PIXELS = 60_000_000  # of a sheet, beyond which its images are scaled down
_SECONDS = 10.0  # between two versions of the sheets
_MISSING = (226, 222, 214)


class Grid:
    """The cells and sheets of a grid in `folder`, which is made if it is not there."""

    def __init__(
        self, folder: Path, axes: Sequence[Axis], cells: Sequence[Cell], private: bool = False
    ) -> None:
        self.folder = folder
        self._axes = axes
        self._private = private
        self._files: Mapping[Cell, Path] = {
            cell: folder / "cells" / f"{recipe_of([cell.drawing], 0).key}.png" for cell in cells
        }
        (folder / "cells").mkdir(parents=True, exist_ok=True)

    @property
    def missing(self) -> list[Cell]:
        """The cells that are still to be drawn."""
        return [cell for cell, file in self._files.items() if not file.exists()]

    @property
    def sheets(self) -> list[Path]:
        """The files of the sheets."""
        count, _, _ = shape(self._axes)
        if count == 1:
            return [self.folder / "sheet.png"]
        return [self.folder / f"sheet-{number + 1:02}.png" for number in range(count)]

    def draw(self, session: Session, say: Callable[[int], None]) -> None:
        """Draws what is missing; `say(count)` is called when so many more cells are there."""
        composed = time.monotonic()
        for strip in strips(self.missing):
            drawing = together(strip)
            for index, image in enumerate(session.draw(drawing)):
                recipe = recipe_of([drawing], index)
                texts = {} if self._private else recipe.texts(*image.size)
                save_png(image, self._files[strip[index]], texts)
            say(len(strip))
            if time.monotonic() - composed > _SECONDS:
                self.compose()
                composed = time.monotonic()

    def compose(self) -> None:
        """Makes the sheets from the cells that are there; the places of others stay blank."""
        for number, file in enumerate(self.sheets):
            page = self._sheet(number)
            save_png(page, file, {} if self._private else self._recipe(number).texts(*page.size))

    def _recipe(self, number: int) -> Recipe:
        """Of all images of a sheet, one by one."""
        cells = [cell for cell in self._files if cell.place[0] == number]
        return recipe_of([cell.drawing for cell in cells], layout=self._layout(number))

    def _layout(self, number: int) -> Layout:
        """How a sheet is labelled."""
        titles = [*(axis.titles for axis in self._axes), ("",), ("",)]
        return Layout(columns=titles[0], rows=titles[1], title=titles[2][number])

    def _sheet(self, number: int) -> Image.Image:
        _, rows, columns = shape(self._axes)
        files = {cell.place: file for cell, file in self._files.items()}
        there = [
            [_opened(files[number, row, column]) for column in range(columns)]
            for row in range(rows)
        ]
        sizes = [image.size for line in there for image in line if image is not None]
        size = _cell_size(sizes, rows * columns)
        images = [[_fitted(image, size) for image in line] for line in there]
        layout = self._layout(number)
        return sheet(images, layout.columns, layout.rows, layout.title)


def _opened(file: Path) -> Image.Image | None:
    if not file.exists():
        return None
    with Image.open(file) as image:
        return image.convert("RGB")


def _cell_size(sizes: Sequence[tuple[int, int]], count: int) -> tuple[int, int]:
    """The size of every image on a sheet: that of the largest, unless the sheet would be huge."""
    width = max((width for width, _ in sizes), default=64)
    height = max((height for _, height in sizes), default=64)
    scale = min(1.0, (_PIXELS / (width * height * count)) ** 0.5)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _fitted(image: Image.Image | None, size: tuple[int, int]) -> Image.Image:
    if image is None:
        return Image.new("RGB", size, _MISSING)
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
