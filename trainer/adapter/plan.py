"""Which layers an adapter is to have, and of what size: from settings and the base's shapes.

No torch here: what a run would train is known before the base is loaded.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from trainer.adapter.block_rules import hint_on_text, read_rules
from trainer.adapter.blocks import BlockWeights, block_of
from trainer.adapter.kinds import KINDS, Factor, Kind, Shape
from trainer.errors import UserError
from trainer.settings import Adapter, Targets

_ATTENTION = r"\.attn[12]\.(to_[qkv]|to_out\.0)$|\.self_attn\.([qkv]|out)_proj$"
_FEED_FORWARD = r"\.ff\.net\.(0\.proj|2)$|\.mlp\.fc[12]$"
_TRANSFORMER = r"^unet\..*\.attentions\.|\.encoder\.layers\."
_CONVOLUTION = r"^unet\..*\.(resnets|downsamplers|upsamplers)\."
_PATTERNS: dict[Targets, str] = {
    "attention": _ATTENTION,
    "attention-ff": f"{_ATTENTION}|{_FEED_FORWARD}",
    "linear": _TRANSFORMER,
    "linear-conv": f"{_TRANSFORMER}|{_CONVOLUTION}",
}


@dataclass(frozen=True)
class LayerPlan:
    """The adapter of one layer: `alpha` divided by `rank` is its scale."""

    kind: Kind
    rank: int
    alpha: float
    factors: Mapping[str, Factor]

    @property
    def parameters(self) -> int:
        return sum(factor.count for factor in self.factors.values())


def plan(shapes: Mapping[str, Shape], wanted: Adapter) -> dict[str, LayerPlan]:
    """The layers to adapt, in the order of `shapes`: those of the parts to train, by module path.

    Raises:
        UserError: if targets, a pattern or a block matches no layer.
    """
    paths = named(shapes, wanted.layers) if wanted.layers else targeted(shapes, wanted.targets)
    ranks = _ranks(paths, wanted)
    plans = {}
    for path in paths:
        rank = ranks[path]
        if rank == 0:
            continue
        kind = KINDS[wanted.kind]
        factors = kind.factors(shapes[path], rank, wanted.lokr_factor)
        plans[path] = LayerPlan(kind, rank, _alpha(wanted, rank), factors)
    if not plans:
        raise UserError("adapter.block_ranks leaves no layer to train.")
    return plans


def targeted(paths: Iterable[str], targets: Targets) -> list[str]:
    """The layers that `targets` means.

    Raises:
        UserError: if a part of the model has none of them.
    """
    paths, pattern = list(paths), re.compile(_PATTERNS[targets])
    chosen = [path for path in paths if pattern.search(path)]
    found = {path.partition(".")[0] for path in chosen}
    for part in dict.fromkeys(path.partition(".")[0] for path in paths):
        if part not in found:
            raise UserError(f"adapter.targets {targets!r} matches no layer of the {part}.")
    return chosen


def named(paths: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The layers whose path, or the start of it up to a dot, one of the patterns matches.

    Raises:
        UserError: for a pattern that matches none, with names like it.
    """
    paths = list(paths)
    matched = {pattern: {p for p in paths if _matches(p, pattern)} for pattern in patterns}
    for pattern, found in matched.items():
        if not found:
            near = _near(pattern, paths)
            hint = f" Is it {' or '.join(near)}?" if near else hint_on_text(pattern, paths)
            raise UserError(f"adapter.layers: {pattern!r} matches no layer.{hint}")
    every = set().union(*matched.values())
    return [path for path in paths if path in every]


def _matches(path: str, pattern: str) -> bool:
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}.*")


def _near(pattern: str, paths: Sequence[str]) -> list[str]:
    """Names of layers, of their ends and of blocks that are like a pattern."""
    plain = pattern.replace("*", "").strip(".")
    ends = {".".join(path.split(".")[-count:]) for path in paths for count in (1, 2, 3)}
    known = [*{block_of(path) for path in paths}, *ends, *paths]
    return difflib.get_close_matches(plain, known, n=3, cutoff=0.6)


def _ranks(paths: Sequence[str], wanted: Adapter) -> dict[str, int]:
    """The rank of each layer: that of the longest rule, else of its part."""
    rules = read_rules("adapter.block_ranks", wanted.block_ranks, paths)
    for prefix, rank in rules.items():
        if rank != int(rank) or not 0 <= rank <= 1024:
            raise UserError(f"adapter.block_ranks {prefix}={rank:g}: a rank is from 0 to 1024.")
    text = wanted.rank if wanted.text_encoder_rank is None else wanted.text_encoder_rank
    parts = dict.fromkeys(("text_encoder", "text_encoder_2"), text)
    of = BlockWeights({"unet": wanted.rank, **parts, **rules})
    return {path: int(of(path)) for path in paths}


def _alpha(wanted: Adapter, rank: int) -> float:
    """The alpha which, divided by the rank, is the scale: one scale for all ranks, or alpha / √rank
    (Kalajdzievski, 2023, arXiv:2312.03732)."""
    if wanted.rank_stabilised:
        return wanted.alpha * math.sqrt(rank)
    return wanted.alpha * rank / wanted.rank
