"""The plan of a grid."""

from __future__ import annotations

from trainer.preview.plan import LARGEST_STRIP, Axis, cells, shape, strips, together
from trainer.preview.request import Drawing

DRAWING = Drawing(base="embedded", prompt="a cat")
STRENGTHS = Axis("strength", ("0", "0.5", "1"), tuple({"strip": (s,)} for s in (0.0, 0.5, 1.0)))
PROMPTS = Axis("prompt", ("a cat", "a dog"), ({"prompt": "a cat"}, {"prompt": "a dog"}))
SEEDS = Axis("seed", ("1", "2"), ({"seed": 1}, {"seed": 2}))


def test_every_combination_has_its_place() -> None:
    axes = [STRENGTHS, PROMPTS, SEEDS]
    assert shape(axes) == (2, 2, 3)
    assert shape([SEEDS]) == (1, 1, 2)
    planned = cells(DRAWING, axes)
    assert len({cell.place for cell in planned}) == 12
    at = {cell.place: cell.drawing for cell in planned}
    assert at[1, 0, 2] == DRAWING.model_copy(update={"strip": (1.0,), "seed": 2})
    assert at[0, 1, 1].prompt == "a dog"


def test_strengths_are_drawn_together_whichever_axis_they_are_on() -> None:
    for axes in ([STRENGTHS, PROMPTS], [PROMPTS, STRENGTHS], [SEEDS, PROMPTS, STRENGTHS]):
        found = list(strips(cells(DRAWING, axes)))
        assert all(together(strip).strip == (0.0, 0.5, 1.0) for strip in found)
        assert len(found) == len(cells(DRAWING, axes)) // 3
    many = Axis("strength", ("",) * 20, tuple({"strip": (s / 10,)} for s in range(20)))
    sizes = [len(strip) for strip in strips(cells(DRAWING, [many]))]
    assert sum(sizes) == 20
    assert max(sizes) == LARGEST_STRIP
    assert all(len(strip) == 1 for strip in strips(cells(DRAWING, [SEEDS, PROMPTS])))
