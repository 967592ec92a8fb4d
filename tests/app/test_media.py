"""What the app serves beside its pages."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from app.media import recipe_of_all
from trainer.preview.grid import save_png
from trainer.preview.recipe import Layout, Recipe, read_recipe
from trainer.preview.request import Drawing


def test_the_sheet_of_a_strip_carries_the_recipe_of_all_its_images(tmp_path: Path) -> None:
    drawing = Drawing(base="embedded", prompt="a red cat", strip=(0.0, 0.5, 1.0))
    one = Recipe(drawings=(drawing,), image=0)
    layout = Layout(columns=("0", "0.5", "1"), rows=("a red cat",), title="strength")
    image, sheet = Image.new("RGB", (8, 8)), Image.new("RGB", (32, 8))
    save_png(image, tmp_path / "00.png", one.texts(*image.size))
    save_png(sheet, tmp_path / "sheet.png", recipe_of_all(tmp_path / "00.png", layout, sheet.size))
    assert read_recipe(tmp_path / "sheet.png") == Recipe(drawings=(drawing,), layout=layout)
    save_png(image, tmp_path / "private.png")
    assert recipe_of_all(tmp_path / "private.png", layout, sheet.size) == {}
