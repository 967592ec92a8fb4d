"""`atelier grid`: images over two or three axes, drawn into a folder and laid out on sheets."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from tqdm import tqdm

from trainer.cli_adapters import tell_unused
from trainer.cli_drawing import (
    add_flags,
    drawing_of,
    given_fields,
    numbers,
    parse_adapter,
    with_defaults,
)
from trainer.errors import SettingsError, UserError
from trainer.fields import problems_of
from trainer.preview.plan import MOST_CELLS, Axis, Cell, cells
from trainer.preview.request import Drawing, Strength
from trainer.run import Run

_DESCRIPTION = """\
Draws an image for each combination of values along two or three axes, and lays them out: --x along
the columns, --y along the rows, --z over several sheets. An axis is written NAME=VALUES:

  strength=0,0.5,1         factors on the strengths of all adapters; drawn as one batch
  seed=1,2,3   steps=10,20   guidance=3,7   sampler=ddim,euler-a
  prompt=a cat|a dog       separated by |
  adapter=A.safetensors=0.8|A.safetensors + B.safetensors=0.5|none
  checkpoint=RUN           those of a run, or files separated by |, in place of the first adapter

Every image is a file of its own in OUTPUT/cells; the sheets are OUTPUT/sheet.png, or sheet-01.png
and so on. If the command is stopped, give it again: what has been drawn is not drawn again.
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the command line."""
    grid = commands.add_parser(
        "grid",
        help="draw images over two or three axes, on labelled sheets",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    grid.add_argument("--x", required=True, metavar="NAME=VALUES", help="axis of the columns")
    grid.add_argument("--y", metavar="NAME=VALUES", help="axis of the rows")
    grid.add_argument("--z", metavar="NAME=VALUES", help="axis of the sheets")
    grid.add_argument("--prompt", help="what to draw")
    add_flags(grid)
    grid.add_argument("--output", type=Path, required=True, metavar="DIR",
                      help="folder for the images and sheets; made if it is not there")  # fmt: skip
    grid.add_argument("--private", action="store_true",
                      help="leave prompt, settings and file names out of the images")  # fmt: skip
    grid.set_defaults(run=_grid)


def _grid(arguments: argparse.Namespace) -> None:
    axes, planned = plan_of(arguments)
    output: Path = arguments.output
    if not output.parent.is_dir() or (output.exists() and not output.is_dir()):
        raise UserError(f"--output {output} cannot be a folder.", "Name one in a folder there is.")

    from trainer.preview.cells import Grid
    from trainer.preview.session import Session
    from trainer.settings import Base

    grid = Grid(output, axes, planned, arguments.private)
    missing = len(grid.missing)
    if missing < len(planned):
        print(f"{len(planned) - missing} of {len(planned)} images are there.", file=sys.stderr)
    if missing:
        tell_unused(one.file for cell in grid.missing for one in cell.drawing.adapters)
        session = Session(Base(model=planned[0].drawing.base, device=arguments.device))
        grid.compose()
        try:
            with tqdm(
                desc="Drawing", total=missing, leave=False, disable=not sys.stderr.isatty()
            ) as bar:
                grid.draw(session, bar.update)
        finally:
            grid.compose()
    else:
        grid.compose()
    for sheet in grid.sheets:
        print(sheet)


def plan_of(arguments: argparse.Namespace) -> tuple[list[Axis], tuple[Cell, ...]]:
    """The axes and cells that the flags ask for.

    Raises:
        UserError: if an axis cannot be read, a value is out of bounds, or there is no prompt.
    """
    written = [text for text in (arguments.x, arguments.y, arguments.z) if text is not None]
    if arguments.z is not None and arguments.y is None:
        raise UserError("--z is a third axis.", "Give --y first.")
    fields = with_defaults(given_fields(arguments))
    names = [text.partition("=")[0] for text in written]
    if "prompt" not in names and not arguments.prompt:
        raise UserError("There is nothing to draw.", "Give --prompt, or an axis of prompts.")
    drawing = drawing_of(fields | {"prompt": arguments.prompt or ""})
    axes = [parse_axis(text, drawing) for text in written]
    for group in ({"adapter", "checkpoint"}, *({name} for name in names)):
        if sum(axis.name in group for axis in axes) > 1:
            raise UserError(f"Two axes change the {' and the '.join(sorted(group))}.",
                            "Change one thing along each.")  # fmt: skip
    for flag in ("mask", "block"):
        if getattr(arguments, flag) and "adapter" in names:
            raise UserError(f"--{flag} is for one list of adapters, and an axis has several.",
                            f"Leave out --{flag}, or the axis of adapters.")  # fmt: skip
    count = 1
    for axis in axes:
        count *= len(axis.labels)
    if count > MOST_CELLS:
        raise UserError(f"The grid has {count:,} images; at most {MOST_CELLS:,} are drawn.",
                        "Give fewer values.")  # fmt: skip
    try:
        return axes, cells(drawing, axes)
    except ValidationError as error:
        raise SettingsError(problems_of(error, Drawing)) from None


def parse_axis(text: str, drawing: Drawing) -> Axis:
    """`strength=0,0.5,1` as an axis for variations of a drawing.

    Raises:
        UserError: if there is no such axis, or a value cannot be read.
    """
    name, equals, values = text.partition("=")
    if name not in _AXES or not equals:
        raise UserError(
            f"{text!r} is not an axis.",
            f"Write it NAME=VALUES, where NAME is one of {', '.join(_AXES)}.",
        )
    if not values.strip():
        raise UserError(f"The axis {name} has no values.", "Write them behind the =.")
    found = _AXES[name](values, drawing)
    return Axis(name, tuple(label for label, _ in found), tuple(change for _, change in found))


_Values = list[tuple[str, Mapping[str, Any]]]  # labels, and what they change


def _strengths(values: str, drawing: Drawing) -> _Values:
    return [(f"{one:g}", {"strip": (one,)}) for one in numbers("strength=", values)]


def _guidances(values: str, drawing: Drawing) -> _Values:
    return [(f"{one:g}", {"guidance": one}) for one in numbers("guidance=", values)]


def _whole(field: str) -> Callable[[str, Drawing], _Values]:
    def read(values: str, drawing: Drawing) -> _Values:
        try:
            return [(part.strip(), {field: int(part)}) for part in values.split(",")]
        except ValueError:
            raise UserError(
                f"{field}={values!r} is not a list of whole numbers.", "Write it like 1,2,3."
            ) from None

    return read


def _samplers(values: str, drawing: Drawing) -> _Values:
    return [(part.strip(), {"sampler": part.strip()}) for part in values.split(",")]


def _prompts(values: str, drawing: Drawing) -> _Values:
    return [(part.strip(), {"prompt": part.strip()}) for part in values.split("|")]


def _adapters(values: str, drawing: Drawing) -> _Values:
    found: _Values = []
    for part in values.split("|"):
        written = [one.strip() for one in part.split(" + ")]
        several = () if written == ["none"] else tuple(parse_adapter(one) for one in written)
        label = " + ".join(f"{one.file.stem} {one.unet:g}" for one in several) or "none"
        found.append((label, {"adapters": several}))
    return found


def _checkpoints(values: str, drawing: Drawing) -> _Values:
    first, *others = drawing.adapters or (Strength(file=Path("checkpoint")),)
    files = [file for part in values.split("|") for file in _checkpoint_files(Path(part.strip()))]
    return [
        (
            str(int(file.stem.removeprefix("step-"))) if _is_step(file) else file.stem,
            {"adapters": (first.model_copy(update={"file": file}), *others)},
        )
        for file in files
    ]


def _checkpoint_files(place: Path) -> Sequence[Path]:
    if not place.is_dir():
        return [place]
    folder = Run(place).checkpoints
    files = sorted((folder if folder.is_dir() else place).glob("*.safetensors"))
    if not files:
        raise UserError(f"There is no checkpoint in {place}.", "Give a run or files.")
    return files


def _is_step(file: Path) -> bool:
    return file.stem.startswith("step-") and file.stem.removeprefix("step-").isdecimal()


_AXES: Mapping[str, Callable[[str, Drawing], _Values]] = {
    "strength": _strengths,
    "checkpoint": _checkpoints,
    "prompt": _prompts,
    "seed": _whole("seed"),
    "adapter": _adapters,
    "steps": _whole("steps"),
    "guidance": _guidances,
    "sampler": _samplers,
}
