"""The main job without a browser: `make demo`.

Trains an adapter for a character that the embedded base has never seen, from the shipped dataset,
and draws it at five strengths.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

from trainer.console import Console
from trainer.errors import AtelierError
from trainer.fields import nest
from trainer.presets import PRESETS
from trainer.run import Run
from trainer.settings import Settings
from trainer.settings_file import parse
from trainer.threads import wait_without_spinning
from trainer.training.attempt import attempt

DATASET = Path("samples/character")
FOLDER = Path("demo")
PROMPTS = (
    "pip the creature in a meadow",
    "pip the creature in the forest",
    "a red cat in a meadow",
)
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def main() -> int:
    """Runs the demo in the present folder; returns the exit code."""
    if not DATASET.is_dir():
        print(f"demo: there is no {DATASET}; run it from the project's folder.", file=sys.stderr)
        return 2
    wait_without_spinning()
    run = Run(FOLDER / "run")
    if run.path.exists():
        shutil.rmtree(run.path)
    try:
        seconds = {"training": _train(run), "drawing": _draw(run)}
    except AtelierError as error:
        print(f"demo: {error}", file=sys.stderr)
        return error.exit_code
    report = json.loads(run.report_file.read_text())
    print(f"Adapter          {run.adapter_file}")
    print(f"Strength sheet   {FOLDER / 'strengths.png'}")
    print(f"Held-out loss    {report['final']}")
    print(f"Recommended      {report['recommended']['why']}")
    for part, taken in seconds.items():
        print(f"{part.capitalize():16} {taken:.0f} s")
    return 0


def _settings() -> Settings:
    return parse(nest(PRESETS["embedded-character"].values | {"dataset.folder": DATASET}))


def _train(run: Run) -> float:
    began = time.monotonic()
    run.create(_settings())
    with Console(run) as console:
        attempt(run, console.hear)
    return time.monotonic() - began


def _draw(run: Run) -> float:
    from trainer.preview.grid import save_png, sheet
    from trainer.preview.recipe import Layout, recipe_of
    from trainer.preview.request import Drawing, Strength
    from trainer.preview.session import Session
    from trainer.settings import Base

    began = time.monotonic()
    session = Session(Base())
    drawings = [
        Drawing(
            base="embedded",
            adapters=(Strength(file=run.adapter_file),),
            prompt=prompt,
            strip=STRENGTHS,
            guidance=_settings().samples.guidance,
        )
        for prompt in PROMPTS
    ]
    rows = [session.draw(drawing) for drawing in drawings]
    layout = Layout(columns=tuple(f"strength {value:g}" for value in STRENGTHS), rows=PROMPTS)
    page = sheet(rows, layout.columns, layout.rows)
    recipe = recipe_of(drawings, layout=layout)
    save_png(page, FOLDER / "strengths.png", recipe.texts(*page.size))
    return time.monotonic() - began


if __name__ == "__main__":
    sys.exit(main())
