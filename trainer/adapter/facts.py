"""What there is to know of an adapter file: as plain values for programs, and in words."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from trainer.adapter import algebra
from trainer.adapter.blocks import block_of, in_order
from trainer.adapter.factors import LowRank
from trainer.adapter.header import read_header
from trainer.adapter.kinds import DoRA, Layer, kind_of
from trainer.adapter.reading import load


def facts(path: Path) -> dict[str, Any]:
    """Family, kinds, ranks, targets, parameters, norms and metadata of an adapter file.

    Norms are of ΔW at strength 1, in the Frobenius norm; None for DoRA, whose ΔW depends on the
    base.

    Raises:
        AdapterError: if the file is broken or holds no adapter.
    """
    file = read_header(path)
    loaded = load(path)
    norms = {module: norm_of(layer) for module, layer in loaded.layers.items()}
    blocks: dict[str, float] = {}
    for module, norm in norms.items():
        blocks[block_of(module)] = math.hypot(blocks.get(block_of(module), 0.0), norm or 0.0)
    natural = [kind_of(layer).natural(layer) for layer in loaded.layers.values()]
    alphas = Counter(found[1] for found in natural if found)
    return {
        "file": str(path),
        "name": loaded.header.name,
        "family": loaded.family.value if loaded.family else None,
        "form": loaded.form,
        "kinds": dict(file.kinds),
        "rank": file.rank,
        "ranks": {str(rank): count for rank, count in sorted(file.ranks.items())},
        "alphas": {f"{alpha:g}": count for alpha, count in sorted(alphas.items())},
        "trigger_words": list(loaded.header.trigger_words),
        "base": loaded.header.base,
        "modules": file.modules,
        "targets": dict(file.parts),
        "parameters": file.parameters,
        "dtype": file.dtype,
        "norm": math.hypot(*(norm or 0.0 for norm in norms.values())),
        "blocks": {block: blocks[block] for block in sorted(blocks, key=in_order)},
        "layers": norms,
        "unused": list(loaded.unused),
        "metadata": dict(file.metadata),
    }


def norm_of(layer: Layer) -> float | None:
    """‖ΔW‖ of a layer of any kind; None for DoRA."""
    if isinstance(layer, DoRA):
        return None
    return algebra.norm(layer) if isinstance(layer, LowRank) else float(layer.delta().norm())


def _norm(known: dict[str, Any]) -> str:
    if all(norm is None for norm in known["layers"].values()):
        return "depends on the base's weights"
    return f"{known['norm']:.4g}"


def to_words(known: dict[str, Any]) -> str:
    """The facts for a person, a line each."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in known["kinds"].items())
    targets = ", ".join(f"{part} {count}" for part, count in known["targets"].items())
    ranks = ", ".join(f"{rank} ({count} layers)" for rank, count in known["ranks"].items())
    lines = [
        f"name        {known['name']}",
        f"family      {known['family'] or 'not told by the file'}",
        f"kind        {kinds}; {known['form']} keys",
        f"rank        {ranks or 'none'}",
        f"alpha       {', '.join(known['alphas']) or 'none'}",
        f"targets     {targets}",
        f"parameters  {known['parameters']:,} in {known['dtype']}",
        f"norm        {_norm(known)}",
    ]
    if known["trigger_words"]:
        lines.append(f"triggers    {', '.join(known['trigger_words'])}")
    if known["base"]:
        lines.append(f"base        {known['base']}")
    lines.extend(f"  {block:24} {norm:.4g}" for block, norm in known["blocks"].items())
    if known["unused"]:
        lines.append(f"{len(known['unused'])} tensors not understood, such as {known['unused'][0]}")
    return "\n".join(lines)
