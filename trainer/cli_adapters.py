"""The subcommands about adapter files: inspect, convert, compose, resize, compare.

Each is a plain function of its parsed arguments that prints its result; a mistake is raised as an
AtelierError. torch is imported when a command runs, not when the command line is read.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import AdapterError, UserError
from trainer.model.bases import Family

if TYPE_CHECKING:
    from trainer.adapter.adapter import Adapter, LoadedAdapter, LowRank
    from trainer.adapter.algebra import Cut, Error
    from trainer.adapter.compare import Conflict
    from trainer.adapter.header import Header

_METHODS = ("concat", "svd", "ties", "dare", "dare-ties", "magnitude")
_SUFFIX = ".safetensors"
BLOCK_HELP = (
    "weigh blocks of all adapters or of the N-th: by the start of their path, "
    "2:unet.up_blocks=0.5, or by a list of 17 or 26 factors (12 or 20 for SDXL), 1,0,0.5,…; repeat "
    "for more"
)


@dataclass(frozen=True)
class Weighted:
    """An adapter file and its weights in the UNet and in the text encoders."""

    file: Path
    unet: float = 1.0
    text_encoder: float = 1.0

    def __call__(self, path: str) -> float:
        """The weight of one layer."""
        return self.unet if path.startswith("unet.") else self.text_encoder


def parse_weighted(text: str) -> Weighted:
    """`style.safetensors=0.8` as a file and its weight, which is 1 where none is given;
    `style.safetensors=0.8:0.3` has 0.3 in the text encoders.

    Raises:
        UserError: if what follows the last `=` is not one or two finite numbers.
    """
    name, equals, numbers = text.rpartition("=")
    if not equals or numbers.endswith(_SUFFIX):  # no weight, or an = in the file's own name
        return Weighted(Path(text))
    unet, colon, apart = numbers.partition(":")
    return Weighted(Path(name), _number(text, unet), _number(text, apart if colon else unet))


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds the subcommands; each sets `run`, to be called with the parsed arguments."""
    inspect = subparsers.add_parser("inspect", help="tell what is in an adapter file")
    inspect.add_argument("file", type=Path, help="adapter file")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.set_defaults(run=run_inspect)

    convert = subparsers.add_parser("convert", help="write an adapter in another key format")
    convert.add_argument("file", type=Path, help="adapter file of any kind")
    convert.add_argument("--to", choices=("kohya", "diffusers"), required=True, help="key format")
    _add_base(convert)
    add_cut(convert.add_mutually_exclusive_group())
    add_output(convert)
    convert.set_defaults(run=run_convert)

    compose = subparsers.add_parser("compose", help="make one adapter from several")
    compose.add_argument(
        "adapters", nargs="+", metavar="FILE=WEIGHT",
        help="weights may be negative; FILE=0.8:0.3 has 0.3 in the text encoder",
    )  # fmt: skip
    compose.add_argument("--method", choices=_METHODS, default="concat",
                         help="concat: the exact sum; svd: the closest of a rank")  # fmt: skip
    compose.add_argument(
        "--block", action="append", default=[], metavar="[N:]BLOCKS", help=BLOCK_HELP
    )
    compose.add_argument(
        "--density", type=float, default=0.5, help="share kept by the pruning methods"
    )
    compose.add_argument("--seed", type=int, default=0, help="seed of the random choice in DARE")
    _add_base(compose)
    add_cut(compose.add_mutually_exclusive_group())
    add_output(compose)
    compose.set_defaults(run=run_compose)

    resize = subparsers.add_parser("resize", help="reduce an adapter's rank")
    resize.add_argument("file", type=Path, help="adapter file")
    _add_base(resize)
    add_cut(resize.add_mutually_exclusive_group(required=True))
    add_output(resize)
    resize.set_defaults(run=run_resize)

    compare = subparsers.add_parser("compare", help="tell whether adapters get in each other's way")
    compare.add_argument("adapters", nargs="+", metavar="FILE[=WEIGHT]")
    _add_base(compare)
    compare.add_argument("--json", action="store_true", help="print JSON")
    compare.add_argument("--picture", type=Path, help="PNG of the overlaps by block (two adapters)")
    compare.set_defaults(run=run_compare)


def run_inspect(args: argparse.Namespace) -> None:
    """Prints family, rank, alpha, targets, parameters, norms and metadata of a file."""
    from trainer.adapter.facts import facts, to_words

    known = facts(args.file)
    print(json.dumps(known, indent=2, ensure_ascii=False) if args.json else to_words(known))


def run_convert(args: argparse.Namespace) -> None:
    """Writes an adapter of any kind as a plain LoRA in the key format asked for."""
    from trainer.adapter.adapter import load

    loaded = load(args.file)
    adapter, error = _plain(loaded, args.base, cut_of(args))
    save_as(adapter, args, loaded.header)
    tell_unused([args.file])
    words = f"{len(adapter)} layers, relative error {error.total:.2e}"
    tell(args, adapter, error, words, unused=list(loaded.unused))


def run_compose(args: argparse.Namespace) -> None:
    """Writes one adapter from several, and prints what it loses against their exact sum."""
    from trainer.adapter import merge
    from trainer.adapter.algebra import Cut
    from trainer.adapter.block_rules import by_adapter, weights_of
    from trainer.adapter.compose import combine, compress

    loaded, weights = _load_all(args.adapters)
    family = _common_family(loaded) or Family.SD1
    rules = by_adapter(args.block, len(loaded))
    factors = weights_of(rules, [one.layers.keys() for one in loaded], family)
    plain = [_plain(one, args.base)[0] for one in loaded]
    weighted = [
        (adapter, lambda path, weight=weight, of=of: weight(path) * of(path))
        for adapter, weight, of in zip(plain, weights, factors, strict=True)
    ]
    cut = cut_of(args)
    if args.method == "concat" and cut:
        raise UserError("--method concat is exact and takes no --rank or --energy.",
                        "Use --method svd to reduce the rank.")  # fmt: skip
    if args.method == "svd" and not cut:
        raise UserError("--method svd needs --rank or --energy.")
    if args.method in ("concat", "svd"):
        adapter = combine(weighted)
        adapter, error = compress(adapter, cut) if cut else (adapter, None)
    else:
        if not 0 < args.density <= 1:
            raise UserError(f"--density must be above 0 and at most 1, not {args.density}.")
        cut = cut or Cut(rank=max(layer.rank for one in plain for layer in one.values()))
        adapter, error = merge.merge(
            weighted, args.method, cut=cut, density=args.density, seed=args.seed
        )
    save_as(adapter, args, _composed_header(args, loaded, weights))
    tell_unused(one.path for one in loaded)
    lost = f"relative error {error.total:.2e}" if error else "the exact sum"
    tell(args, adapter, error, f"{len(adapter)} layers, rank {rank_in_words(adapter)}, {lost}")


def run_resize(args: argparse.Namespace) -> None:
    """Writes the closest adapter of lower rank, and prints what it loses."""
    from trainer.adapter.adapter import load
    from trainer.adapter.compose import compress

    loaded = load(args.file)
    cut = cut_of(args)
    assert cut is not None  # the parser requires one of the two
    adapter, error = compress(_plain(loaded, args.base)[0], cut)
    save_as(adapter, args, loaded.header)
    tell_unused([args.file])
    worst = worst_of(error)
    tell(args, adapter, error, f"rank {rank_in_words(adapter)}, relative error {error.total:.2e}, "
                                f"largest in {worst} ({error.layers[worst]:.2e})")  # fmt: skip


def run_compare(args: argparse.Namespace) -> None:
    """Prints the conflict report of every pair of adapters."""
    from itertools import combinations

    from trainer.adapter.compare import compare
    from trainer.adapter.compose import combine

    loaded, weights = _load_all(args.adapters)
    if len(loaded) < 2:
        raise UserError("There is nothing to compare: give two adapters or more.")
    if args.picture and len(loaded) > 2:
        raise UserError("--picture shows two adapters; give two.")
    stems = [one.path.stem for one in loaded]
    alike = len(set(stems)) < len(stems)  # as the files of runs are, which are all `adapter`
    named = [
        (one.header.name or stem if alike else stem, combine([(_plain(one, args.base)[0], weight)]))
        for one, stem, weight in zip(loaded, stems, weights, strict=True)
    ]
    tell_unused(one.path for one in loaded)
    reports = [compare((a, b), one, two) for (a, one), (b, two) in combinations(named, 2)]
    if args.picture:
        _draw(reports[0], args.picture)
    if args.json:
        said = [{**report.to_json(), "words": report.to_words()} for report in reports]
        print(json.dumps(said, indent=2, ensure_ascii=False))
    else:
        print("\n\n".join(f"{one.to_words()}\n{one.to_table()}" for one in reports))


def tell_unused(files: Iterable[Path]) -> None:
    """Says, beside a command's result, which tensors of adapter files have no effect."""
    from trainer.adapter.header import read_header

    for file in dict.fromkeys(files):
        if unused := read_header(file).unused:
            print(
                f"{file}: {len(unused)} tensors are not understood and left out, such as "
                f"{unused[0]}; `atelier inspect --json` lists them.",
                file=sys.stderr,
            )


def _plain(
    loaded: LoadedAdapter, base: str | None, cut: Cut | None = None
) -> tuple[dict[str, LowRank], Error]:
    """An adapter as plain factors, with the weights of the base where one is given."""
    from trainer.adapter.base_weights import read_weights
    from trainer.model.load import locate

    return loaded.plain(cut, read_weights(locate(base), loaded.layers) if base else None)


def _add_base(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base", help="base reference; needed for DoRA, whose effect depends on it"
    )


def add_cut(group: argparse._MutuallyExclusiveGroup) -> None:
    """The flags that say how far to reduce a rank."""
    group.add_argument("--rank", type=int, help="highest rank of a layer")
    group.add_argument("--energy", type=float, help="share of each layer's energy to keep, up to 1")


def add_output(parser: argparse.ArgumentParser) -> None:
    """The flags of a command that writes an adapter."""
    parser.add_argument("--output", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--precision", choices=("fp16", "bf16", "fp32"), default="fp16")
    parser.add_argument("--family", choices=[family.value for family in Family],
                        help="of a file that does not tell")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def cut_of(args: argparse.Namespace) -> Cut | None:
    """What `add_cut`'s flags ask for. Raises UserError if that makes no sense."""
    from trainer.adapter.algebra import Cut

    if args.rank is None and args.energy is None:
        return None
    try:
        return Cut(args.rank, args.energy)
    except ValueError as error:
        raise UserError(f"--{error}.") from None


def _number(text: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{text!r} is not FILE=WEIGHT: {number!r} is not a number.")
    return value


def _load_all(texts: Sequence[str]) -> tuple[list[LoadedAdapter], list[Weighted]]:
    """The adapters of `FILE=WEIGHT` arguments and their weights, all for one family."""
    from trainer.adapter.adapter import load

    weighted = [parse_weighted(text) for text in texts]
    loaded = [load(one.file) for one in weighted]
    families = {one.family: one.path for one in loaded if one.family}
    if len(families) > 1:
        said = ", ".join(f"{path} is for {family.full_name}" for family, path in families.items())
        raise AdapterError(f"The adapters are for different bases: {said}.")
    return loaded, weighted


def _common_family(loaded: Sequence[LoadedAdapter]) -> Family | None:
    """The family of adapters for one base, of which some may not tell theirs."""
    return next((one.family for one in loaded if one.family), None)


def _composed_header(
    args: argparse.Namespace, loaded: Sequence[LoadedAdapter], weights: Sequence[Weighted]
) -> Header:
    """A header that says what was composed, and has what the adapters have in common."""
    from trainer.adapter.header import Header

    recipe = {
        "method": args.method,
        "adapters": [
            {"name": one.header.name, "weight": weight.unet, "text_encoder": weight.text_encoder}
            for one, weight in zip(loaded, weights, strict=True)
        ],
        **{name: value for name in ("block", "rank", "energy", "density", "seed")
           if (value := getattr(args, name)) not in (None, [])},
    }  # fmt: skip
    bases = {(one.header.base, one.header.base_hash) for one in loaded}
    base, base_hash = bases.pop() if len(bases) == 1 else (None, None)
    v_prediction = any(one.header.prediction_type == "v_prediction" for one in loaded)
    return Header(
        name=args.output.stem,
        family=_common_family(loaded),
        prediction_type="v_prediction" if v_prediction else "epsilon",
        trigger_words=tuple(dict.fromkeys(w for one in loaded for w in one.header.trigger_words)),
        base=base,
        base_hash=base_hash,
        resolution=max((one.header.resolution or 0 for one in loaded), default=0) or None,
        settings=json.dumps({"composed": recipe}, ensure_ascii=False),
    )


def save_as(adapter: Adapter, args: argparse.Namespace, header: Header) -> None:
    """Writes an adapter where and how `add_output`'s flags say."""
    from dataclasses import replace

    from trainer.adapter.adapter import save
    from trainer.precision import DTYPES

    if args.output.suffix != _SUFFIX:
        raise UserError(f"{args.output} must end in {_SUFFIX}.")
    family = Family(args.family) if args.family else header.family
    try:
        save(
            adapter,
            args.output,
            replace(header, family=family),
            precision=DTYPES[args.precision],
            form=getattr(args, "to", "kohya"),
        )
    except OSError as error:
        raise UserError(f"{args.output} cannot be written: {error.strerror}.") from None


def _draw(report: Conflict, path: Path) -> None:
    from trainer.adapter import heatmap

    try:
        heatmap.draw(report).save(path, format="PNG")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from None


def tell(
    args: argparse.Namespace, adapter: Adapter, error: Error | None, words: str, **more: Any
) -> None:
    """Prints what was written: in words, or as JSON with the error of the whole and of its worst
    layer, which are null for an exact result."""
    if not args.json:
        print(f"Wrote {args.output}: {words}.")
        return
    worst = worst_of(error) if error and error.layers else None
    result = {
        "output": str(args.output),
        "layers": len(adapter),
        "rank": rank_in_words(adapter),
        "error": error.total if error else None,
        "worst_layer": worst,
        "worst_error": error.layers[worst] if error and worst else None,
    }
    print(json.dumps({**result, **more}, indent=2, ensure_ascii=False))


def worst_of(error: Error) -> str:
    """The layer that loses most."""
    return max(error.layers, key=lambda path: error.layers[path])


def rank_in_words(adapter: Adapter) -> str:
    """`16`, or `4 to 16` where layers differ."""
    ranks = [layer.rank for layer in adapter.values()]
    low, high = min(ranks), max(ranks)
    return str(low) if low == high else f"{low} to {high}"
