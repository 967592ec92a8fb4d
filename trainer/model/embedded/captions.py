"""The phrases that captions are put together from."""

from __future__ import annotations

from random import Random

from trainer.model.embedded.creatures import Creature

EYES = {1: "one eye", 2: "two eyes", 3: "three eyes"}
SIZES = {"small": ("small", "little", "tiny"), "big": ("big", "large", "huge")}
"""How captions say a size, the usual way first."""

CREATURE_NAMES = ("creature", "monster")
"""What captions call a creature, the usual name first."""

UNKNOWN_WORD_SHARE = 1 / 16
TRIGGERS = ("pip", "tib", "vex", "sks")
"""Words that no caption of the base's training ever has in it: adapters may give them a meaning."""


def article(phrase: str) -> str:
    """The phrase with "a" or "an" before it."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def unknown_word(rng: Random) -> str:
    """A word that means nothing, such as "rovak": the base learns to read past it."""
    consonants, vowels = "bcdfghklmnprstvwz", "aeiou"
    syllables = rng.choice((1, 2, 2, 3))
    word = "".join(rng.choice(consonants) + rng.choice(vowels) for _ in range(syllables))
    word += rng.choice(consonants)
    return unknown_word(rng) if word in TRIGGERS else word


def usually(ways: tuple[str, ...], rng: Random) -> str:
    """The first of several ways to say something, or at times another."""
    return ways[0] if rng.random() < 0.7 else rng.choice(ways[1:])


def creature_phrase(creature: Creature, rng: Random) -> str:
    """A creature in words, without an article; one time in five its parts go unsaid."""
    name = usually(CREATURE_NAMES, rng)
    if rng.random() < 0.2:
        return f"{creature.colour} {name}"
    details = [EYES[creature.eyes]]
    if creature.head != "no ears":
        details.append(f"{creature.accent} {creature.head}")
    if creature.crest != "no crest":
        colour = creature.crest_colour or creature.accent
        crest = {"spikes": f"{colour} spikes", "a tuft": f"a {colour} tuft"}[creature.crest]
        details.append(crest)
    if creature.belly:
        details.append(article(f"{creature.belly} belly"))
    if creature.marks != "plain":
        details.append(f"{creature.accent} {creature.marks}")
    details.append(
        {"smile": "a smile", "fangs": "fangs", "open mouth": "an open mouth"}[creature.mouth]
    )
    if rng.random() < 0.4:
        rng.shuffle(details)
    if rng.random() < 0.15:
        details.pop()
    listed = details[0] if len(details) == 1 else f"{', '.join(details[:-1])} and {details[-1]}"
    return f"{creature.colour} {creature.body} {name} with {listed}"


def manner_phrase(manner: str, rng: Random) -> tuple[str, str]:
    """How a caption names a manner: words before it and words after it, one of them empty."""
    ways = (
        ("", f", {manner} style"),
        ("", f" in {manner} style"),
        (f"{manner} drawing of ", ""),
        (f"{manner} picture of ", ""),
    )
    return rng.choices(ways, (6, 2, 2, 1))[0]


def lead(rng: Random) -> str:
    """How a caption begins: mostly straight away, at times with "a picture of"."""
    return rng.choices(("", "a picture of ", "a drawing of ", "there is "), (8, 2, 2, 1))[0]


def with_unknown_word(text: str, rng: Random) -> str:
    """The caption with a word that means nothing put somewhere into it."""
    words = text.split(" ")
    words.insert(rng.randrange(len(words) + 1), unknown_word(rng))
    return " ".join(words)
