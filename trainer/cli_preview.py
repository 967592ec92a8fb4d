"""Commands that draw: preview, and the worker behind the web app."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from trainer.cli_adapters import tell_unused
from trainer.cli_drawing import (
    add_flags,
    check_output,
    drawing_of,
    given_fields,
    numbers,
    with_defaults,
)
from trainer.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from trainer.preview.recipe import Recipe
    from trainer.preview.request import Drawing, Strength
    from trainer.preview.session import Session


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the commands to the command line."""
    preview = commands.add_parser(
        "preview",
        help="draw an image, or a strip over strengths",
        description="Draws an image, or a labelled strip over strengths. Prompts may be of any "
        "length; (word:1.2), (word) and [word] weigh words as in A1111, and \\( is a plain "
        "bracket.",
        allow_abbrev=False,
    )
    add_flags(preview)
    preview.add_argument("--prompt", action="append", default=[],
                         help="what to draw; repeat for more rows")  # fmt: skip
    preview.add_argument("--output", type=Path, required=True, help="PNG file to write")
    preview.add_argument("--strengths", help="factors of a strip, such as 0,0.5,1")
    preview.add_argument("--from", type=Path, metavar="IMAGE", dest="image",
                         help="draw again what this PNG shows; other flags change it")  # fmt: skip
    preview.add_argument("--among", type=Path, action="append", default=[], metavar="PATH",
                         help="with --from: where to look for adapters and images that are no "
                         "longer where they were, by their hash; repeat for more")  # fmt: skip
    preview.add_argument("--private", action="store_true",
                         help="leave prompt, settings and file names out of the PNG")  # fmt: skip
    preview.set_defaults(run=_preview)
    worker = commands.add_parser("worker", help="draw on request, for the web app")
    worker.set_defaults(run=_worker)


def _preview(arguments: argparse.Namespace) -> None:
    check_output("--output", arguments.output)
    wanted = _wanted(arguments)

    from trainer.preview.grid import save_png
    from trainer.preview.recipe import recipe_of
    from trainer.preview.session import Session
    from trainer.settings import Base

    # Before drawing, so that a missing file is told at once.
    recipe = recipe_of(wanted.drawings, wanted.image, wanted.layout)
    tell_unused(used.file for used in recipe.adapters)
    session = Session(Base(model=wanted.drawings[0].base, device=arguments.device))
    rows = _drawn(session, wanted.drawings)
    image = _sheet(wanted, rows) if wanted.image is None else rows[0][wanted.image]
    texts = {} if arguments.private else recipe.texts(*image.size)
    save_png(image, arguments.output, texts)
    print(arguments.output)


def _wanted(arguments: argparse.Namespace) -> Recipe:
    """What the flags ask for: drawings, and whether one of their images or a sheet of all."""
    from trainer.preview.recipe import Recipe

    if arguments.image is not None:
        return _repeated(arguments)
    if not arguments.prompt:
        raise UserError("There is nothing to draw.", "Give --prompt, or --from an image.")
    if arguments.among:
        raise UserError("--among is for --from.", "Leave it out.")
    fields = with_defaults(_fields(arguments))
    drawings = [drawing_of({**fields, "prompt": prompt}) for prompt in arguments.prompt]
    alone = arguments.strengths is None and len(drawings) == 1
    return Recipe(drawings=tuple(drawings), image=0 if alone else None)


def _repeated(arguments: argparse.Namespace) -> Recipe:
    """What an image shows, with what the flags change about it."""
    from trainer.preview.recipe import Recipe, found_again, read_recipe

    original = read_recipe(arguments.image)
    changes = [_fields(arguments, drawing.adapters) for drawing in original.drawings]
    changed = [_with(*pair) for pair in zip(original.drawings, changes, strict=True)]
    recipe = found_again(original.model_copy(update={"drawings": tuple(changed)}), arguments.among)
    drawings = recipe.drawings
    if arguments.prompt:
        drawings = tuple(_with(drawings[0], {"prompt": prompt}) for prompt in arguments.prompt)
    image = recipe.image if len(drawings) == 1 and arguments.strengths is None else None
    labels_hold = not arguments.prompt and _alike(original.drawings, changes[0])
    return Recipe(drawings=drawings, image=image, layout=recipe.layout if labels_hold else None)


def _fields(arguments: argparse.Namespace, adapters: Sequence[Strength] = ()) -> dict[str, object]:
    """The fields of a drawing that flags give, the strip included."""
    fields = given_fields(arguments, adapters)
    if arguments.strengths is not None:
        fields["strip"] = numbers("--strengths", arguments.strengths)
    return fields


def _alike(drawings: Sequence[Drawing], fields: Iterable[str]) -> bool:
    """Whether the drawings of a sheet differ in none of the fields, so that a change of those
    leaves its labels true; a strip is always on the labels."""
    names = set(fields)
    first = drawings[0].model_dump(include=names)
    return "strip" not in names and all(one.model_dump(include=names) == first for one in drawings)


def _with(drawing: Drawing, fields: dict[str, object]) -> Drawing:
    return drawing_of({**dict(drawing), **fields})


def _drawn(session: Session, drawings: Sequence[Drawing]) -> list[list[Image.Image]]:
    """A row of images for each drawing, with a bar for each where there is a terminal."""
    rows = []
    for drawing in drawings:
        with tqdm(desc="Drawing", leave=False, disable=not sys.stderr.isatty()) as bar:
            rows.append(session.draw(drawing, _shown_on(bar)))
    return rows


def _shown_on(bar: tqdm[None]) -> Callable[[int, int], None]:
    def advance(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return advance


def _sheet(recipe: Recipe, rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    from trainer.preview.grid import sheet

    if (layout := recipe.layout) is None:
        labels = [f"{factor:g}" for factor in recipe.drawings[0].strip]
        return sheet(rows, labels, [drawing.prompt for drawing in recipe.drawings])
    images = [image for row in rows for image in row]
    width = len(layout.columns)
    lines = [images[begin : begin + width] for begin in range(0, len(images), width)]
    return sheet(lines, layout.columns, layout.rows, layout.title)


def _worker(arguments: argparse.Namespace) -> None:
    from trainer.preview.worker import main

    main()
