"""Block weights as a person types them: `[N:]PREFIX=FACTOR`, or `[N:]` and a list of factors.

Without N a rule is for every adapter; with it, for the N-th, from 1. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

from trainer.adapter.blocks import BlockWeights, block_list
from trainer.errors import UserError
from trainer.model.bases import Family

Weight = Callable[[str], float]


def weights_of(
    rules: Sequence[str], layers: Sequence[Collection[str]], family: Family
) -> list[Weight]:
    """One function from module path to factor for each adapter.

    Of rules with prefixes, the longest that fits a layer counts; lists multiply with them.

    Args:
        rules: `unet.up_blocks=0.5`, `2:text_encoder=0`, `1:1,0,0,0.5,…` (see `blocks.block_list`).
        layers: the module paths of each adapter.

    Raises:
        UserError: if a rule cannot be read, or names an adapter or layers that there are not.
    """
    prefixes: list[dict[str, float]] = [{} for _ in layers]
    lists: list[list[Weight]] = [[] for _ in layers]
    for rule in rules:
        chosen, rest = _chosen(rule, len(layers))
        prefix, equals, factor = rest.rpartition("=")
        if not equals:
            listed = _listed(rule, rest, family)
            for index in chosen:
                lists[index].append(listed)
        elif not any(_is_under(path, prefix) for index in chosen for path in layers[index]):
            raise UserError(f"--block {rule}: no layer's path starts with {prefix!r}.")
        for index in chosen if equals else ():
            prefixes[index][prefix] = _factor(rule, factor)
    return [
        _product([BlockWeights(named), *listed])
        for named, listed in zip(prefixes, lists, strict=True)
    ]


def _chosen(rule: str, count: int) -> tuple[Sequence[int], str]:
    """The indices of the adapters that a rule is for, and the rest of it."""
    position, colon, rest = rule.rpartition(":")
    if not colon:
        return range(count), rest
    if not position.isdecimal() or not 1 <= int(position[:9]) <= count:
        raise UserError(
            f"--block {rule}: {position!r} is not the number of an adapter (of {count})."
        )
    return [int(position) - 1], rest


def _listed(rule: str, text: str, family: Family) -> Weight:
    try:
        return block_list([_factor(rule, factor) for factor in text.split(",")], family)
    except ValueError as error:
        raise UserError(f"--block {rule}: {error}.") from None


def _factor(rule: str, text: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not math.isfinite(factor):
        raise UserError(f"--block {rule}: {text!r} is not a number; give PREFIX=FACTOR or a list.")
    return factor


def _is_under(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(f"{prefix}.")


def _product(weights: Sequence[Weight]) -> Weight:
    return lambda path: math.prod(weight(path) for weight in weights)
