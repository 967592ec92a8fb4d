"""`atelier grid`: its axes, its sheets, and that a stopped one goes on."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.adapters import random_adapter
from tests.images import apart
from trainer.adapter.adapter import save
from trainer.adapter.header import Header
from trainer.cli import run
from trainer.cli_grid import parse_axis
from trainer.model.load import load
from trainer.preview.recipe import read_recipe
from trainer.preview.request import Drawing, Strength
from trainer.preview.session import Session
from trainer.settings import Base

DRAWING = Drawing(
    base="embedded", prompt="x", adapters=(Strength(file=Path("a"), unet=0.5), Strength(file="b"))
)


@pytest.fixture(scope="module")
def checkpoints(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints."""
    model = load(Base(model=str(small_base), device="cpu"))
    home = tmp_path_factory.mktemp("run")
    (home / "checkpoints").mkdir()
    for step in (5, 10):
        file = home / "checkpoints" / f"step-{step:06}.safetensors"
        save(random_adapter(model.parts, step), file, Header(name="x", family=model.family))
    return home


@pytest.fixture
def draw(
    small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command; returns exit code, output and errors."""

    def grid(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        common = ("grid", "--base", small_base, "--prompt", "a cat", "--steps", 1, "--width", 64,
                  "--height", 64, "--output", tmp_path / "grid")  # fmt: skip
        code = run([str(one) for one in (*common, *arguments)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return grid


def test_what_axes_change(checkpoints: Path) -> None:
    def changes(text: str) -> list[dict[str, object]]:
        return [dict(change) for change in parse_axis(text, DRAWING).changes]

    assert changes("strength=0,-.5") == [{"strip": (0.0,)}, {"strip": (-0.5,)}]
    assert changes("seed=1, 2") == [{"seed": 1}, {"seed": 2}]
    assert changes("prompt=a, b| c") == [{"prompt": "a, b"}, {"prompt": "c"}]
    assert changes("sampler=euler") == [{"sampler": "euler"}]
    first, second = DRAWING.adapters
    adapters = parse_axis("adapter=c.safetensors=2|a=1 + b=1|none", DRAWING)
    assert adapters.labels == ("c 2", "a 1 + b 1", "none")
    assert [len(change["adapters"]) for change in adapters.changes] == [1, 2, 0]
    found = parse_axis(f"checkpoint={checkpoints}", DRAWING)
    assert found.labels == ("5", "10")
    file = checkpoints / "checkpoints" / "step-000005.safetensors"
    assert found.changes[0] == {"adapters": (first.model_copy(update={"file": file}), second)}


def test_a_grid_of_three_axes_is_drawn_and_goes_on(
    draw: Callable[..., tuple[int, str, str]],
    checkpoints: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    axes = ("--x", "strength=0,1", "--y", f"checkpoint={checkpoints}", "--z", "seed=1,2")
    drawn: list[Drawing] = []
    real = Session.draw

    def until(limit: int) -> None:
        def counted(self: Session, wanted: Drawing, *more: object) -> list[Image.Image]:
            if len(drawn) == limit:
                raise KeyboardInterrupt
            drawn.append(wanted)
            return real(self, wanted)

        monkeypatch.setattr(Session, "draw", counted)

    until(3)
    code, _, _ = draw(*axes)
    assert code == 1
    cells = tmp_path / "grid" / "cells"
    assert len(list(cells.iterdir())) == 6
    assert all(wanted.strip == (0.0, 1.0) for wanted in drawn)
    before = {file: file.stat().st_mtime_ns for file in cells.iterdir()}

    until(99)
    code, out, _ = draw(*axes)
    assert code == 0
    assert len(drawn) == 4
    sheets = [Path(line) for line in out.splitlines()]
    assert [sheet.name for sheet in sheets] == ["sheet-01.png", "sheet-02.png"]
    assert {file: file.stat().st_mtime_ns for file in before} == before
    recipe = read_recipe(sheets[0])
    assert recipe.image is None
    assert len(recipe.drawings) == 4
    pages = [Image.open(sheet).convert("RGB") for sheet in sheets]
    assert apart(*pages) > 5
    files = list(cells.iterdir())
    assert len(files) == 8

    # A cell repeats by its recipe, and a grid that is whole draws nothing.
    again = tmp_path / "again.png"
    assert run(["preview", "--from", str(files[0]), "--output", str(again)]) == 0
    assert apart(Image.open(files[0]), Image.open(again)) == 0
    assert len(drawn) == 5
    assert draw(*axes)[0] == 0
    assert len(drawn) == 5

    # A sheet repeats by its recipe, labels and all; a change that makes them untrue drops them.
    until(99)
    assert run(["preview", "--from", str(sheets[1]), "--output", str(again)]) == 0
    assert Image.open(again).size == pages[1].size
    assert apart(Image.open(again).convert("RGB"), pages[1]) <= 1  # its cells were drawn in strips
    assert read_recipe(again) == read_recipe(sheets[1])
    assert run(["preview", "--from", str(again), "--clip-skip", "2", "--output", str(again)]) == 0
    assert read_recipe(again).layout == read_recipe(sheets[1]).layout
    assert run(["preview", "--from", str(again), "--strengths", "0,1", "--output", str(again)]) == 0
    assert read_recipe(again).layout is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--x", "colour=red"), "is one of strength, checkpoint"),
        (("--x", "seed="), "has no values"),
        (("--x", "seed=1,x"), "not a list of whole numbers"),
        (("--x", "strength=0,high"), "not a list of numbers"),
        (("--x", "sampler=slow"), "sampler"),
        (("--x", "steps=0"), "steps"),
        (("--x", "adapter=a=high"), "how strongly"),
        (("--x", "seed=1", "--y", "seed=2"), "Two axes change the seed"),
        (("--x", "adapter=none", "--y", "checkpoint=a"), "Two axes change the adapter and"),
        (("--x", "seed=1", "--z", "steps=1"), "Give --y first"),
        (("--x", "adapter=none", "--adapter", "a", "--block", "unet=0"), "one list of adapters"),
        (("--x", "checkpoint=no.safetensors"), r"no\.safetensors"),
        (("--x", "seed=" + ",".join("1" * 40), "--y", "steps=" + ",".join("1" * 40)),
         "1,600 images"),
    ],
)  # fmt: skip
def test_mistakes_are_one_clear_line(
    draw: Callable[..., tuple[int, str, str]], arguments: tuple[str, ...], says: str
) -> None:
    code, _, said = draw(*arguments)
    assert code == 2
    assert said.count("\n") == 1
    assert re.search(says, said), said
