"""The drawn world: the same from the same seed, named by its captions, nothing held back in it."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from PIL import Image

from trainer.model.embedded.backgrounds import SCENES, TINTS, place_phrases
from trainer.model.embedded.canvas import COLOURS, MANNERS, VEX
from trainer.model.embedded.captions import CREATURE_NAMES, SIZES, TRIGGERS, unknown_word
from trainer.model.embedded.creatures import Creature
from trainer.model.embedded.subjects import THINGS
from trainer.model.embedded.world import (
    PIP,
    TIB,
    Scene,
    Thing,
    caption,
    draw,
    held_back,
    random_scene,
)


def test_the_world_is_as_rich_as_it_says() -> None:
    assert len(THINGS) >= 12
    assert len(COLOURS) == 10
    assert len(SCENES) + len(TINTS) >= 8
    assert len(MANNERS) >= 6


@pytest.mark.parametrize("seed", range(8))
def test_the_same_seed_gives_the_same_scene_drawing_and_caption(seed: int) -> None:
    one, two = random_scene(Random(seed)), random_scene(Random(seed))
    assert one == two
    assert draw(one, 48).tobytes() == draw(two, 48).tobytes()
    assert caption(one, Random(seed)) == caption(two, Random(seed))


def test_captions_name_what_is_drawn() -> None:
    rng = Random(3)
    for _ in range(300):
        scene = random_scene(rng)
        words = caption(scene, rng)
        names = CREATURE_NAMES if isinstance(scene.subject, Creature) else (scene.subject.noun,)
        assert any(name in words for name in names)
        assert scene.subject.colour in words
        assert scene.side in words
        assert not scene.size or any(size in words for size in SIZES[scene.size])
        assert any(where.split()[-1] in words for where in place_phrases(scene.place))
        if scene.manner != "dark outline":
            assert set(scene.manner.split()) <= set(words.replace(",", "").split())
        if scene.second:
            assert scene.second.noun in words
            assert scene.second.colour in words


def test_a_scene_can_be_said_in_several_ways() -> None:
    scene, rng = Scene(Creature("green", eyes=3, head="horns"), "meadow"), Random(0)
    assert len({caption(scene, rng) for _ in range(30)}) >= 8


def test_what_is_held_back_is_never_drawn_for_training_nor_named() -> None:
    rng = Random(4)
    for _ in range(3000):
        scene = random_scene(rng)
        assert not held_back(scene)
        assert not set(TRIGGERS) & set(caption(scene, rng).replace(",", "").split())
    assert held_back(Scene(PIP))
    assert held_back(Scene(Thing(TIB, "red")))
    assert held_back(Scene(Thing("star", "red"), manner=VEX.name))


def test_unknown_words_are_never_triggers() -> None:
    rng = Random(5)
    assert not {unknown_word(rng) for _ in range(20_000)} & set(TRIGGERS)


@pytest.mark.parametrize("noun", THINGS)
def test_a_drawing_looks_the_same_at_any_resolution(noun: str) -> None:
    scene = Scene(Thing(noun, "purple"), "beach")
    small = np.asarray(draw(scene, 64), dtype=float)
    large = np.asarray(draw(scene, 192).resize((64, 64), Image.Resampling.BOX), dtype=float)
    assert np.abs(small - large).mean() < 3.0


def test_every_subject_colour_place_and_manner_makes_a_picture_of_its_own() -> None:
    things = {draw(Scene(Thing(noun, "red")), 32).tobytes() for noun in THINGS}
    colours = {draw(Scene(Thing("star", colour)), 32).tobytes() for colour in COLOURS}
    places = {draw(Scene(Thing("star", "red"), place), 32).tobytes() for place in (*SCENES, *TINTS)}
    manners = {
        draw(Scene(Thing("star", "red"), manner=name), 32).tobytes()
        for name in (*MANNERS, VEX.name)
    }
    assert len(things) == len(THINGS)
    assert len(colours) == len(COLOURS)
    assert len(places) == len(SCENES) + len(TINTS)
    assert len(manners) == len(MANNERS) + 1


def test_edges_are_smooth() -> None:
    picture = np.asarray(draw(Scene(Thing("heart", "red"), manner="flat"), 64))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
