"""Block weights as a person types them: `[N:]PREFIX=FACTOR`, or `[N:]` and a list of factors.

Without N a rule is for every adapter; with it, for the N-th, from 1. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

from trainer.adapter.blocks import BlockWeights, block_list
from trainer.errors import UserError
from trainer.model.bases import Family
from trainer.settings import Optimizer

Weight = Callable[[str], float]


def weights_of(
    rules: Sequence[Sequence[str]], layers: Sequence[Collection[str]], family: Family
) -> list[Weight]:
    """One function from module path to factor for each adapter.

    Of rules with prefixes, the longest that fits a layer counts; lists multiply with them.

    Args:
        rules: of each adapter: `unet.up_blocks=0.5`, `1,0,0,0.5,…` (see `blocks.block_list`).
        layers: the module paths of each adapter.

    Raises:
        UserError: if a rule cannot be read, or fits no layer of any adapter that has it.
    """
    adapters: dict[str, list[int]] = {}
    for index, own in enumerate(rules):
        for rule in own:
            adapters.setdefault(rule, []).append(index)
    prefixes: list[dict[str, float]] = [{} for _ in layers]
    lists: list[list[Weight]] = [[] for _ in layers]
    for rule, having in adapters.items():
        prefix, equals, factor = rule.rpartition("=")
        if not equals:
            listed = _listed(rule, family)
            for index in having:
                lists[index].append(listed)
        elif not any(is_under(path, prefix) for index in having for path in layers[index]):
            raise UserError(f"The block weight {rule!r}: no layer's path starts with {prefix!r}.")
        for index in having if equals else ():
            prefixes[index][prefix] = _factor(rule, factor)
    return [
        _product([BlockWeights(named), *listed])
        for named, listed in zip(prefixes, lists, strict=True)
    ]


def read_rules(setting: str, rules: Sequence[str], paths: Collection[str]) -> dict[str, float]:
    """Rules `PREFIX=NUMBER` of a setting, each for layers that there are.

    Raises:
        UserError: if one cannot be read or matches no layer.
    """
    read: dict[str, float] = {}
    for rule in rules:
        prefix, equals, text = rule.replace(" ", "").rpartition("=")
        try:
            number = float(text) if equals else math.nan
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"{setting}: {rule!r} is not BLOCK=NUMBER, as unet.up_blocks.0=4.")
        if not any(is_under(path, prefix) for path in paths):
            hint = hint_on_text(prefix, paths)
            raise UserError(f"{setting} {rule}: no layer's path starts with {prefix!r}.{hint}")
        read[prefix] = number
    return read


def block_rates(wanted: Optimizer, paths: Collection[str]) -> dict[str, float]:
    """What the learning rate of blocks is multiplied by, of an adapter on the layers `paths`.

    Raises:
        UserError: if a rule cannot be read, is below 0 or matches no layer.
    """
    rules = read_rules("optimizer.block_rates", wanted.block_rates, paths)
    if negative := [prefix for prefix, factor in rules.items() if factor < 0]:
        raise UserError(f"optimizer.block_rates: that of {negative[0]} is below 0.")
    return rules


def hint_on_text(name: str, paths: Collection[str]) -> str:
    """A word on text encoders, for a name that means their layers where there are none."""
    of_text = "text_encoder"
    if not name.startswith(of_text) or any(path.startswith(of_text) for path in paths):
        return ""
    return " The text encoder is not trained here: see adapter.text_encoder and adapter.layers."


def by_adapter(rules: Sequence[str], count: int) -> list[tuple[str, ...]]:
    """The rules of each of `count` adapters, without their N.

    Raises:
        UserError: if a rule names an adapter that there is not.
    """
    found: list[list[str]] = [[] for _ in range(count)]
    for rule in rules:
        position, colon, rest = rule.rpartition(":")
        if colon and not (position.isdecimal() and 1 <= int(position[:9]) <= count):
            raise UserError(
                f"--block {rule}: {position!r} is not the number of an adapter (of {count})."
            )
        for index in [int(position) - 1] if colon else range(count):
            found[index].append(rest)
    return [tuple(own) for own in found]


def _listed(rule: str, family: Family) -> Weight:
    try:
        return block_list([_factor(rule, factor) for factor in rule.split(",")], family)
    except ValueError as error:
        raise UserError(f"The block weights {rule!r}: {error}.") from None


def _factor(rule: str, text: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not math.isfinite(factor):
        raise UserError(
            f"The block weight {rule!r}: {text!r} is not a number.",
            "Write it PREFIX=FACTOR, as unet.up_blocks=0.5, or as a list of factors.",
        )
    return factor


def is_under(path: str, prefix: str) -> bool:
    """Whether a layer's path is or starts with a block's."""
    return path == prefix or path.startswith(f"{prefix}.")


def _product(weights: Sequence[Weight]) -> Weight:
    return lambda path: math.prod(weight(path) for weight in weights)
