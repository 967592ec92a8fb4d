"""The subcommands between a base and adapters: fuse, extract. torch is imported when one runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from trainer.cli_adapters import (
    add_cut,
    add_output,
    cut_of,
    parse_weighted,
    rank_in_words,
    save_as,
    tell,
    tell_unused,
    worst_of,
)
from trainer.errors import AdapterError


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds the subcommands; each sets `run`, to be called with the parsed arguments."""
    fuse = subparsers.add_parser("fuse", help="write a base with adapters baked in")
    fuse.add_argument(
        "--base", required=True, help="base reference: embedded, folder, file or hub id"
    )
    fuse.add_argument(
        "--adapter",
        action="append",
        required=True,
        metavar="FILE=STRENGTH",
        help="FILE=0.8:0.3 has 0.3 in the text encoder; repeat for more",
    )
    fuse.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), help="number format (the base's own)"
    )
    fuse.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to make")
    fuse.add_argument(
        "--json", action="store_true",
        help="print what rounding left of each layer, as JSON: gain, error, share left unchanged",
    )  # fmt: skip
    fuse.set_defaults(run=run_fuse)

    extract = subparsers.add_parser(
        "extract", help="make an adapter of what a fine-tuned model has learned"
    )
    extract.add_argument("--base", required=True, help="base reference: what was tuned")
    extract.add_argument("--tuned", required=True, help="base reference: what came of it")
    extract.add_argument(
        "--targets", choices=("attention", "attention-ff", "linear", "linear-conv"),
        help="layers to look at (all that files have names for)",
    )  # fmt: skip
    add_cut(extract.add_mutually_exclusive_group(required=True))
    add_output(extract)
    extract.set_defaults(run=run_extract)


def run_fuse(args: argparse.Namespace) -> None:
    """Writes a base with adapters in its weights, and says what rounding left of them."""
    from trainer.adapter.bake import bake
    from trainer.adapter.compose import combine
    from trainer.model.describe import describe
    from trainer.model.load import locate
    from trainer.precision import DTYPES
    from trainer.preview.session import load_for

    base = locate(args.base)
    family = describe(base).family
    weighted = [parse_weighted(text) for text in args.adapter]
    adapter = combine([(load_for(family, base, one.file), one) for one in weighted])
    tell_unused(one.file for one in weighted)
    report = bake(base, adapter, args.output, DTYPES.get(args.precision))
    if args.json:
        told = {"output": str(args.output), "words": report.to_words(), **report.to_json()}
        print(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        print(report.to_words())
        print(args.output)


def run_extract(args: argparse.Namespace) -> None:
    """Writes the difference of two models as an adapter, and prints what its rank loses of it."""
    from trainer.adapter.base_weights import read_weights
    from trainer.adapter.compose import extract
    from trainer.adapter.header import Header
    from trainer.adapter.keys import kohya_name
    from trainer.adapter.plan import targeted
    from trainer.model.load import locate
    from trainer.model.shapes import outline

    base, tuned = locate(args.base), locate(args.tuned)
    outlines = [outline(str(place)) for place in (base, tuned)]
    families = [known.family for known in outlines if known]
    if families[0] is not families[1]:
        raise AdapterError(
            f"The base is {families[0].full_name}, and the tuned model {families[1].full_name}.",
            "Give the base that the model was tuned from.",
        )
    known = outlines[0]
    assert known is not None  # it is here
    paths = [p for part in known.parts.values() for p in part.shapes if kohya_name(p, known.family)]
    if args.targets:
        paths = targeted(paths, args.targets)
    cut = cut_of(args)
    assert cut is not None  # the parser requires one of the two
    adapter, error = extract(read_weights(tuned, paths), read_weights(base, paths), cut)
    recipe = {"extracted": {"base": args.base, "tuned": args.tuned, "rank": args.rank,
                            "energy": args.energy}}  # fmt: skip
    header = Header(args.output.stem, families[0], base=args.base, settings=json.dumps(recipe))
    save_as(adapter, args, header)
    worst = worst_of(error)
    tell(args, adapter, error, f"{len(adapter)} layers, rank {rank_in_words(adapter)}, relative "
                               f"error {error.total:.2e}, largest in {worst} "
                               f"({error.layers[worst]:.2e})")  # fmt: skip
