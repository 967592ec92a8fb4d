"""Sheets keep their images' pixels and have room for their labels."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from trainer.preview.grid import save_png, sheet


def test_every_image_is_on_the_sheet_enlarged() -> None:
    colours = [[(10 * row, 50 * column, 200) for column in range(3)] for row in range(2)]
    rows = [[Image.new("RGB", (64, 64), colour) for colour in line] for line in colours]
    page = sheet(rows, ["0", "0.5", "1"], ["a cat", "a very long prompt " * 30], title="Strength")
    counts = {colour: count for count, colour in page.getcolors(1 << 20) or []}
    for line in colours:
        for colour in line:
            assert counts[colour] == 192 * 192  # three times as large, and nothing mixed in


def test_a_saved_sheet_reads_back(tmp_path: Path) -> None:
    page = sheet([[Image.new("RGB", (512, 256), "red")]], [""], ["one"])
    assert page.width >= 512
    save_png(page, tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").size == page.size
