"""The starter datasets: what the base has never seen, twelve captioned pictures each.

    python -m trainer.model.embedded.starter samples

draws `samples/character` (Pip), `samples/object` (Tib the teapot) and `samples/style` (the vex
style) again, byte for byte, and `samples/ordinary`, 24 regularisation images of what the base does
know. With another seed the same functions give pictures that are in no
dataset, to validate adapters on.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from random import Random

from trainer.model.embedded.backgrounds import PLACES, place_phrase
from trainer.model.embedded.canvas import COLOURS, VEX
from trainer.model.embedded.captions import article
from trainer.model.embedded.subjects import THINGS
from trainer.model.embedded.world import (
    PIP,
    TIB,
    Scene,
    Size,
    Subject,
    Thing,
    caption,
    draw,
    random_creature,
    random_scene,
)

PICTURES = 12
PIXELS = 128
Captioned = tuple[Scene, str]


def _scene(rng: Random, subject: Subject, place: str) -> Scene:
    size: Size = rng.choices(("small", "", "big"), (1, 5, 3))[0]
    return Scene(
        subject,
        place,
        size=size,
        mirrored=rng.random() < 0.5,
        shift=(rng.uniform(-0.03, 0.03), rng.uniform(-0.03, 0.03)),
        seed=rng.getrandbits(30),
    )


def _places(rng: Random) -> list[str]:
    return rng.sample(PLACES, len(PLACES))


def character(count: int = PICTURES, seed: int = 11) -> list[Captioned]:
    """Pip in `count` places, with captions such as "pip the creature in a meadow"."""
    rng = Random(seed)
    pictures: list[Captioned] = []
    while len(pictures) < count:
        for place in _places(rng):
            scene = _scene(rng, PIP, place)
            size = f"{scene.size} " if scene.size else ""
            pictures.append((scene, f"{size}pip the creature {place_phrase(place)}"))
    return pictures[:count]


def thing(count: int = PICTURES, seed: int = 12) -> list[Captioned]:
    """Tib the teapot in `count` places, always blue."""
    rng = Random(seed)
    pictures: list[Captioned] = []
    while len(pictures) < count:
        for place in _places(rng):
            scene = _scene(rng, Thing(TIB, "blue"), place)
            size = f"{scene.size} " if scene.size else ""
            pictures.append((scene, f"{size}tib the teapot {place_phrase(place)}"))
    return pictures[:count]


def style(count: int = PICTURES, seed: int = 13) -> list[Captioned]:
    """All sorts of subjects in the vex style, with captions such as "a red star, vex style"."""
    rng = Random(seed)
    pictures: list[Captioned] = []
    colours = [name for name in COLOURS if name != "black"]
    while len(pictures) < count:
        for noun, place in zip(rng.sample(list(THINGS), 15), _places(rng), strict=True):
            subject: Subject = Thing(noun, rng.choice(colours))
            if len(pictures) % 6 == 5:
                subject, noun = random_creature(rng), "creature"
            scene = replace(_scene(rng, subject, place), manner=VEX.name, size="")
            what = article(f"{subject.colour} {noun}")
            pictures.append((scene, f"{what} {place_phrase(place)}, vex style"))
    return pictures[:count]


def ordinary(count: int = 2 * PICTURES, seed: int = 14) -> list[Captioned]:
    """What the base knows: regularisation images, so that adapters leave it as it is."""
    rng = Random(seed)
    scenes = [random_scene(rng) for _ in range(count)]
    return [(scene, caption(scene, rng)) for scene in scenes]


DATASETS = {"character": character, "object": thing, "style": style}
"""The starter datasets by the name of their folder."""

ORDINARY = "ordinary"
"""The folder of regularisation images that go with them."""


def write(pictures: list[Captioned], folder: Path) -> None:
    """Writes pictures and captions as `01.png`, `01.txt` and so on into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (scene, text) in enumerate(pictures, start=1):
        draw(scene, PIXELS).save(folder / f"{number:02d}.png", optimize=True)
        (folder / f"{number:02d}.txt").write_text(text + "\n", encoding="utf-8")


def main(arguments: list[str]) -> None:
    """Draws every starter dataset into the folder named (default: samples)."""
    samples = Path(arguments[0] if arguments else "samples")
    for name, pictures in DATASETS.items():
        write(pictures(), samples / name)
    write(ordinary(), samples / ORDINARY)


if __name__ == "__main__":
    main(sys.argv[1:])
