"""The drawings that the build trains on: a store of pictures on disk, and what is in each.

Picture `i` is a function of (seed, i) alone, so a store that was lost or cut short is drawn again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from trainer.model.embedded.backgrounds import PLACES
from trainer.model.embedded.canvas import COLOURS, INK, MANNERS, WHITE, Canvas, Colour, Manner, Pen
from trainer.model.embedded.creatures import BODIES, CRESTS, HEADS, MARKS, MOUTHS, Creature
from trainer.model.embedded.geometry import star
from trainer.model.embedded.subjects import THINGS
from trainer.model.embedded.world import Scene, caption, draw, random_scene

PIXELS = 64
CAPTIONS_PER_SCENE = 4
CHUNK = 500
SEED, PROBE_SEED = 1, 2
PROBED = 128
"""How many drawings no part learns from are measured at every save."""
CREATURES = 0.45
"""The share of creatures among the scenes to learn from: they have the most to learn."""

Pixels = NDArray[np.uint8]  # [N, 64, 64, 3]

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "subject": ("creature", *THINGS),
    "colour": tuple(COLOURS),
    "place": PLACES,
    "manner": tuple(MANNERS),
    "size": ("small", "", "big"),
    "side": ("left", "", "right"),
    "second": ("none", *THINGS),
    "second colour": ("none", *COLOURS),
    "body": ("none", *BODIES),
    "eyes": ("none", "1", "2", "3"),
    "head": ("none", *HEADS),
    "accent": ("none", *COLOURS),
    "crest": ("none", *CRESTS),
    "crest colour": ("none", *COLOURS),
    "mouth": ("none", *MOUTHS),
    "marks": ("none", *MARKS),
    "belly": ("none", *COLOURS),
}
"""What can be read off a picture: each attribute's values. "none" where it does not apply."""


def attributes(scene: Scene) -> dict[str, str]:
    """The values of all `ATTRIBUTES` in a scene."""
    subject, second = scene.subject, scene.second
    values = dict.fromkeys(ATTRIBUTES, "none")
    values |= {
        "colour": subject.colour,
        "place": scene.place,
        "manner": scene.manner,
        "size": scene.size,
        "side": scene.side,
    }
    if second is not None:
        values |= {"second": second.noun, "second colour": second.colour}
    if not isinstance(subject, Creature):
        return values | {"subject": subject.noun}
    accented = subject.head != "no ears" or subject.marks != "plain"
    crested = subject.crest != "no crest"
    return values | {
        "subject": "creature",
        "body": subject.body,
        "eyes": str(subject.eyes),
        "head": subject.head,
        "accent": subject.accent if accented else "none",
        "crest": subject.crest,
        "crest colour": subject.crest_colour or subject.accent if crested else "none",
        "mouth": subject.mouth,
        "marks": subject.marks,
        "belly": subject.belly or "none",
    }


def labels(scenes: Iterable[Scene]) -> NDArray[np.int64]:
    """The attributes of scenes as indices into `ATTRIBUTES`' values; [N, number of attributes]."""
    return np.array(
        [
            [ATTRIBUTES[name].index(value) for name, value in attributes(scene).items()]
            for scene in scenes
        ],
        dtype=np.int64,
    )


def scene_number(index: int, seed: int) -> Scene:
    """Scene `index` of the sequence that belongs to `seed`."""
    return random_scene(Random(f"{seed}/{index}"), creatures=CREATURES)


def captions_of(scene: Scene, index: int, seed: int) -> list[str]:
    """`CAPTIONS_PER_SCENE` ways of saying what scene `index` shows."""
    rng = Random(f"{seed}/{index}/captions")
    return [caption(scene, rng) for _ in range(CAPTIONS_PER_SCENE)]


def doodle(rng: Random) -> Pixels:
    """An abstract picture in a manner of its own: it teaches the VAE what the world lacks."""

    def colour() -> Colour:
        return rng.randrange(256), rng.randrange(256), rng.randrange(256)

    dark = rng.random() < 0.5
    manner = Manner(
        "doodle",
        wash=colour(),
        wash_share=rng.choice((0.0, 0.3, 0.9)),
        line=rng.choice((None, INK, WHITE, colour())),
        dark=dark,
        line_width=rng.uniform(0.012, 0.05),
        glow=rng.choice((0.0, 0.0, 0.015)),
    )
    canvas = Canvas(PIXELS, manner)
    canvas.pencil.rectangle(
        (0, 0, canvas.pixels, canvas.pixels), fill=(12, 10, 20) if dark else colour()
    )
    for _ in range(rng.randint(3, 9)):
        centre = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9)
        pen = Pen(canvas, centre, rng.uniform(0.05, 0.35), weight=rng.choice((0.6, 1.0)))
        kind = rng.randrange(5)
        if kind == 0:
            pen.ellipse(0, 0, 1, rng.uniform(0.4, 1), colour())
        elif kind == 1:
            pen.polygon(star(rng.randint(3, 7), 1, rng.uniform(0.3, 0.9)), colour())
        elif kind == 2:
            pen.line([(rng.uniform(-1, 1), rng.uniform(-1, 1)) for _ in range(3)], 0.2, colour())
        elif kind == 3:
            pen.box(-1, -rng.random(), 1, rng.random(), colour(), 0.1)
        else:
            pen.dab(0, 0, rng.uniform(0.1, 0.4), rng.uniform(0.1, 0.4), colour())
    return np.asarray(canvas.finish())


def _pictures(start: int, seed: int, doodles: bool) -> Pixels:
    indices = range(start, start + CHUNK)
    if doodles:
        return np.stack([doodle(Random(f"{seed}/{i}/doodle")) for i in indices])
    return np.stack([np.asarray(draw(scene_number(i, seed), PIXELS)) for i in indices])


def store(folder: Path, name: str, count: int, seed: int, doodles: bool = False) -> Pixels:
    """`count` pictures (a multiple of 500) as a read-only array on disk; drawn if not there yet."""
    path = folder / f"{name}.npy"
    if not path.exists():
        draw_chunk = partial(_pictures, seed=seed, doodles=doodles)
        partly = path.with_suffix(".partly.npy")
        pixels = np.lib.format.open_memmap(
            partly, mode="w+", dtype=np.uint8, shape=(count, PIXELS, PIXELS, 3)
        )
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            starts = range(0, count, CHUNK)
            for start, chunk in zip(starts, pool.map(draw_chunk, starts), strict=True):
                pixels[start : start + CHUNK] = chunk
        pixels.flush()
        partly.rename(path)
    return stored(folder, name)


def stored(folder: Path, name: str) -> Pixels:
    """The pictures of a store that is drawn already, read as they are needed."""
    pixels: Pixels = np.load(folder / f"{name}.npy", mmap_mode="r")
    return pixels


def draw_all(folder: Path, scenes: int) -> None:
    """Draws what the build learns from and is measured on, where that is not done yet."""
    store(folder, "scenes", scenes, SEED)
    store(folder, "doodles", min(2_000, scenes), SEED, doodles=True)
    store(folder, "probe", min(1_000, scenes), PROBE_SEED)
