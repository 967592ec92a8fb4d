"""Commands that draw: preview, and the worker behind the web app."""

from __future__ import annotations

import argparse
from pathlib import Path

from pydantic import ValidationError

from trainer.errors import SettingsError, UserError
from trainer.fields import problems_of
from trainer.model.bases import EMBEDDED
from trainer.preview.request import Drawing, Strength


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the commands to the command line."""
    preview = commands.add_parser(
        "preview", help="draw an image, or a strip over strengths", allow_abbrev=False
    )
    preview.add_argument("--base", default="embedded", help="the base to draw with (embedded)")
    preview.add_argument("--adapter", action="append", default=[], metavar="FILE=STRENGTH",
                         help="an adapter and its strength; repeat for more")  # fmt: skip
    preview.add_argument("--prompt", action="append", required=True,
                         help="what to draw; repeat for more rows")  # fmt: skip
    preview.add_argument("--output", type=Path, required=True, help="PNG file to write")
    preview.add_argument("--strengths", help="factors of a strip, such as 0,0.5,1")
    preview.add_argument("--negative_prompt", default="", help="what not to show")
    preview.add_argument("--seed", type=int, default=0, help="seed of the noise (0)")
    preview.add_argument("--steps", type=int, default=20, help="denoising steps (20)")
    preview.add_argument("--guidance", type=float, default=None,
                         help="guidance scale (7; 3.5 for the embedded base)")  # fmt: skip
    preview.add_argument("--width", type=int, help="pixels (the base's own size)")
    preview.add_argument("--height", type=int, help="pixels (the base's own size)")
    preview.add_argument("--device", choices=["cuda", "mps", "cpu"], help="where to draw")
    preview.set_defaults(run=_preview)
    worker = commands.add_parser("worker", help="draw on request, for the web app")
    worker.set_defaults(run=_worker)


def _preview(arguments: argparse.Namespace) -> None:
    if arguments.output.suffix.lower() != ".png":
        raise UserError(f"--output {arguments.output} does not end in .png.", "Name a PNG file.")
    if not arguments.output.parent.is_dir():
        raise UserError(f"There is no folder {arguments.output.parent}.", "Make it first.")
    drawings = [_drawing(arguments, prompt) for prompt in arguments.prompt]

    from trainer.preview.grid import save_png, sheet
    from trainer.preview.session import Session
    from trainer.settings import Base

    session = Session(Base(model=arguments.base, device=arguments.device))
    rows = [session.draw(drawing) for drawing in drawings]
    if arguments.strengths is None and len(rows) == 1:
        image = rows[0][0]
    else:
        image = sheet(rows, [f"{factor:g}" for factor in drawings[0].strip], arguments.prompt)
    save_png(image, arguments.output)
    print(arguments.output)


def _drawing(arguments: argparse.Namespace, prompt: str) -> Drawing:
    from trainer.cli_adapters import parse_weighted

    weighted = [parse_weighted(text) for text in arguments.adapter]
    try:
        return Drawing(
            base=arguments.base,
            adapters=tuple(Strength(file=file, unet=strength) for file, strength in weighted),
            prompt=prompt,
            negative_prompt=arguments.negative_prompt,
            strip=_factors(arguments.strengths),
            seed=arguments.seed,
            steps=arguments.steps,
            guidance=_guidance(arguments),
            width=arguments.width,
            height=arguments.height,
        )
    except ValidationError as error:
        raise SettingsError(problems_of(error, Drawing)) from None


def _guidance(arguments: argparse.Namespace) -> float:
    if arguments.guidance is not None:
        return float(arguments.guidance)
    return 3.5 if arguments.base == EMBEDDED else 7.0


def _factors(text: str | None) -> tuple[float, ...]:
    if text is None:
        return (1.0,)
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"--strengths {text!r} is not a list of numbers.", "Write it like 0,0.5,1."
        ) from None


def _worker(arguments: argparse.Namespace) -> None:
    from trainer.preview.worker import main

    main()
