"""The world that the embedded base knows: random scenes, how they look and what captions say.

Everything follows from a `random.Random`: the same seed gives the same scene, the same drawing at
any resolution, and the same caption. Needs Pillow only.

    scene = random_scene(Random(7))
    draw(scene, 64).save("scene.png")
    print(caption(scene, Random(7)))
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from PIL import Image

from trainer.model.embedded.backgrounds import SCENES, TINTS, paint, place_phrase
from trainer.model.embedded.canvas import COLOURS, MANNERS, VEX, Canvas, Pen
from trainer.model.embedded.captions import (
    SIZES,
    UNKNOWN_WORD_SHARE,
    article,
    creature_phrase,
    lead,
    manner_phrase,
    usually,
    with_unknown_word,
)
from trainer.model.embedded.creatures import (
    BODIES,
    CRESTS,
    HEADS,
    MARKS,
    MOUTHS,
    Creature,
    draw_creature,
)
from trainer.model.embedded.subjects import THINGS, draw_teapot

Size = Literal["small", "", "big"]
Side = Literal["left", "", "right"]

REACHES: dict[Size, float] = {"small": 0.29, "": 0.38, "big": 0.46}
"""Half the extent of a subject of each size, as a fraction of the picture."""

DEFAULT_MANNER = "dark outline"

PIP = Creature(
    "purple",
    body="cone",
    eyes=1,
    head="horns",
    crest="spikes",
    mouth="fangs",
    accent="orange",
    belly="yellow",
    crest_colour="green",
)
"""The character held back from the base's training: Pip."""

TIB = "teapot"
"""The object held back from the base's training: Tib, a pot with a zigzag band."""


@dataclass(frozen=True)
class Thing:
    """Any subject that is no creature: a noun of `THINGS` (or `TIB`) and the name of its colour."""

    noun: str
    colour: str


Subject = Thing | Creature


@dataclass(frozen=True)
class Scene:
    """One picture: a subject in a place, in a manner; perhaps a second subject at its right.

    `shift` moves the subject by a small fraction of the picture (x, y); `seed` settles where the
    background's clouds and stars are.
    """

    subject: Subject
    place: str = "white"
    manner: str = DEFAULT_MANNER
    size: Size = ""
    side: Side = ""
    second: Thing | None = None
    shift: tuple[float, float] = (0.0, 0.0)
    mirrored: bool = False
    seed: int = 0


def draw(scene: Scene, size: int) -> Image.Image:
    """The scene as an RGB picture of `size` by `size` pixels, antialiased."""
    canvas = Canvas(size, VEX if scene.manner == VEX.name else MANNERS[scene.manner])
    paint(canvas, scene.place, scene.seed)
    x, y = 0.5 + scene.shift[0], 0.53 + scene.shift[1]
    if scene.second is not None:
        pen = Pen(canvas, (x - 0.24, y + 0.04), 0.24, weight=0.75)
        _draw_subject(pen, scene.subject)
        _draw_subject(replace(pen, centre=(x + 0.24, y + 0.04)), scene.second)
        return canvas.finish()
    x += {"left": -0.2, "": 0.0, "right": 0.2}[scene.side]
    reach = REACHES[scene.size] * (0.8 if scene.side else 1.0)
    weight = min(1.0, 0.4 + 0.6 * reach / REACHES[""])
    _draw_subject(Pen(canvas, (x, y), reach, scene.mirrored, weight=weight), scene.subject)
    return canvas.finish()


def _draw_subject(pen: Pen, subject: Subject) -> None:
    if isinstance(subject, Creature):
        draw_creature(pen, subject)
    elif subject.noun == TIB:
        draw_teapot(pen, COLOURS[subject.colour])
    else:
        THINGS[subject.noun](pen, COLOURS[subject.colour])


def held_back(scene: Scene) -> bool:
    """Whether a scene shows something the base must never see in training.

    That is Pip and all its close relatives (the same body, eyes and head), Tib, and the vex manner.
    """
    if scene.manner == VEX.name:
        return True
    if isinstance(scene.subject, Thing):
        return TIB in (scene.subject.noun, scene.second.noun if scene.second else "")
    return _kin(scene.subject) == _kin(PIP)


def _kin(creature: Creature) -> tuple[str, int, str]:
    return creature.body, creature.eyes, creature.head


def random_creature(rng: Random) -> Creature:
    """A creature with random parts, never one of Pip's kin."""
    colour, accent, belly, crest = rng.sample([name for name in COLOURS if name != "black"], 4)
    creature = Creature(
        colour=colour,
        body=rng.choice(BODIES),
        eyes=rng.choice((1, 2, 2, 3)),
        head=rng.choice(HEADS),
        crest=rng.choices(CRESTS, (5, 2, 2))[0],
        mouth=rng.choice(MOUTHS),
        marks=rng.choices(MARKS, (6, 2, 2))[0],
        accent=accent,
        belly=rng.choice((None, None, accent, belly, belly)),
        crest_colour=rng.choice((None, crest)),
    )
    return random_creature(rng) if _kin(creature) == _kin(PIP) else creature


def random_thing(rng: Random) -> Thing:
    """A thing of the world in a random colour."""
    return Thing(rng.choice(list(THINGS)), rng.choice(list(COLOURS)))


def random_place(rng: Random) -> str:
    """A place: a scene of the world two times in three, else a plain colour."""
    return rng.choice(list(SCENES)) if rng.random() < 0.66 else rng.choice(list(TINTS))


def random_scene(rng: Random, creatures: float = 0.35) -> Scene:
    """A scene as the base's training draws them; a share `creatures` of them shows a creature."""
    place = random_place(rng)
    manner = DEFAULT_MANNER
    if rng.random() < 0.36:
        manner = rng.choice([name for name in MANNERS if name != DEFAULT_MANNER])
    shift, seed = (rng.uniform(-0.02, 0.02), rng.uniform(-0.02, 0.02)), rng.getrandbits(30)
    if rng.random() < creatures:
        subject: Subject = random_creature(rng)
    else:
        subject = random_thing(rng)
        if rng.random() < 0.16:
            return Scene(subject, place, manner, second=random_thing(rng), shift=shift, seed=seed)
    size: Size = rng.choices(("small", "", "big"), (2, 10, 3))[0]
    side: Side = "" if size == "big" else rng.choices(("left", "", "right"), (1, 8, 1))[0]
    return Scene(subject, place, manner, size, side, None, shift, rng.random() < 0.5, seed)


def caption(scene: Scene, rng: Random) -> str:
    """One way of saying what the scene shows; another `rng` phrases it differently.

    The subject, its colour, the place and an unusual manner, size or side are nearly always
    named, a creature's parts mostly. One caption in sixteen has an unknown word in it.
    """
    text = _subject_phrase(scene, rng)
    if scene.second is not None:
        join = usually((" and ", " next to "), rng)
        text += join + article(f"{scene.second.colour} {scene.second.noun}")
    if scene.side:
        text += usually((" on the ", " at the "), rng) + scene.side
    text += " " + place_phrase(scene.place, rng)
    before, after = "", ""
    if scene.manner != DEFAULT_MANNER or rng.random() < 0.08:
        before, after = manner_phrase(scene.manner, rng)
    opening = article(before) if before else lead(rng)
    text = opening + text + after
    return with_unknown_word(text, rng) if rng.random() < UNKNOWN_WORD_SHARE else text


def _subject_phrase(scene: Scene, rng: Random) -> str:
    subject = scene.subject
    if isinstance(subject, Creature):
        phrase = creature_phrase(subject, rng)
    else:
        phrase = f"{subject.colour} {subject.noun}"
    return article(f"{usually(SIZES[scene.size], rng)} {phrase}" if scene.size else phrase)
