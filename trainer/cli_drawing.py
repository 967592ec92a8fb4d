"""The flags that say how to draw, shared by the commands that do, and what they mean."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from trainer.adapter.block_rules import by_adapter
from trainer.cli_adapters import BLOCK_HELP
from trainer.errors import SettingsError, UserError
from trainer.fields import problems_of
from trainer.model.bases import EMBEDDED
from trainer.preview.mixing import SWITCH_EVERY, Mixing
from trainer.preview.request import Drawing, Strength
from trainer.preview.samplers import SAMPLERS

_SUFFIX = ".safetensors"
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"
_USE = re.compile(
    rf"(?P<first>{_NUMBER})(?:\.\.(?P<last>{_NUMBER}))?(?::(?P<text>{_NUMBER}))?"
    rf"(?:@(?P<begin>{_NUMBER})-(?P<end>{_NUMBER}))?"
)
ADAPTER_HELP = (
    "an adapter, with its strength (1): FILE=0.8. FILE=0.8:0.3 has 0.3 in the text encoder; "
    "FILE=0..1 goes from 0 to 1 over the steps; FILE=0.8@0-0.5 acts in the first half of them, at "
    "high noise, @0.5-1 in the second, at low noise. Repeat for more"
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of one drawing. Those that are not given are None, or empty."""
    parser.add_argument("--base", help="the base to draw with (embedded)")
    parser.add_argument("--adapter", action="append", default=[], metavar="FILE=STRENGTH",
                        help=ADAPTER_HELP)  # fmt: skip
    parser.add_argument(
        "--block", action="append", default=[], metavar="[N:]BLOCKS", help=BLOCK_HELP
    )
    parser.add_argument("--mask", action="append", default=[], metavar="N:IMAGE",
                        help="keep the N-th adapter to where the image is white")  # fmt: skip
    parser.add_argument("--mixing", choices=get_args(Mixing),
                        help="several adapters: all at once (sum), one after another (switch), or "
                        "the mean of what each alone predicts (composite); the text encoder has "
                        "all of them at once in each case (sum)")  # fmt: skip
    parser.add_argument("--switch_every", type=int,
                        help=f"steps until the next adapter's turn ({SWITCH_EVERY})")  # fmt: skip
    parser.add_argument("--negative_prompt", help="what not to show")
    parser.add_argument("--seed", type=int, help="seed of the noise (0)")
    parser.add_argument("--steps", type=int, help="denoising steps (20)")
    parser.add_argument("--guidance", type=float,
                        help="guidance scale (7; 3.5 for the embedded base)")  # fmt: skip
    parser.add_argument("--sampler", choices=SAMPLERS, help="how noise becomes an image (ddim)")
    parser.add_argument("--clip_skip", type=int,
                        help="layer of the text encoder, as A1111 counts: 1 the last, 2 the last "
                        "but one, where SDXL begins (1)")  # fmt: skip
    parser.add_argument("--width", type=int, help="pixels (the base's own size)")
    parser.add_argument("--height", type=int, help="pixels (the base's own size)")
    parser.add_argument("--initial_image", type=Path, metavar="IMAGE", help="image to begin with")
    parser.add_argument("--denoise", type=float,
                        help="how much of the initial image goes, up to 1 (0.75)")  # fmt: skip
    parser.add_argument("--device", choices=["cuda", "mps", "cpu"], help="where to draw")


def given_fields(
    arguments: argparse.Namespace, adapters: Sequence[Strength] = ()
) -> dict[str, Any]:
    """The fields of a `Drawing` that flags give, but for the prompt and the strip. Masks and block
    weights are for the adapters that flags give, too, or else for `adapters`.

    Raises:
        UserError: if an adapter, a block weight or a mask is written wrongly.
    """
    found = {
        name: value
        for name in Drawing.model_fields.keys() - {"prompt", "strip", "adapters"}
        if (value := getattr(arguments, name, None)) is not None
    }
    adapters = [parse_adapter(text) for text in arguments.adapter] or list(adapters)
    for flag in ("mask", "block"):
        if getattr(arguments, flag) and not adapters:
            raise UserError(f"--{flag} is for an adapter, and there is none.",
                            "Give --adapter, too.")  # fmt: skip
    if arguments.block:
        rules = by_adapter(arguments.block, len(adapters))
        adapters = [
            one.model_copy(update={"blocks": own}) for one, own in zip(adapters, rules, strict=True)
        ]
    if arguments.adapter or arguments.mask or arguments.block:
        found["adapters"] = with_masks(adapters, arguments.mask)
    return found


def with_defaults(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with a base, and a guidance that suits it."""
    base = fields.get("base", EMBEDDED)
    return {"base": base, "guidance": 3.5 if base == EMBEDDED else 7.0} | fields


def drawing_of(fields: dict[str, Any]) -> Drawing:
    """The drawing with these fields. Raises SettingsError if one is out of bounds."""
    try:
        return Drawing.model_validate(fields)
    except ValidationError as error:
        raise SettingsError(problems_of(error, Drawing)) from None


def parse_adapter(text: str) -> Strength:
    """`style.safetensors=0.8:0.3@0-0.5` as a file and how strongly it acts when.

    Raises:
        UserError: if what follows the last `=` cannot be read.
    """
    name, equals, use = text.rpartition("=")
    if not equals or use.endswith(_SUFFIX):  # nothing said, or an = in the file's own name
        return _strength(text, {"file": text})
    match = _USE.fullmatch(use)
    if match is None:
        raise UserError(
            f"{text!r} does not say how strongly the adapter acts.",
            "Write it like FILE=0.8, FILE=0.8:0.3, FILE=0..1 or FILE=0.8@0-0.5.",
        )
    first = float(match["first"])
    last = first if match["last"] is None else float(match["last"])
    peak = max(first, last, key=abs)
    fields: dict[str, Any] = {"file": name, "unet": peak}
    if match["text"] is not None:
        fields["text_encoder"] = float(match["text"])
    schedule: dict[str, float] = {}
    if first != last:
        schedule |= {"first": first / peak, "last": last / peak}
    if match["begin"] is not None:
        schedule |= {"begin": float(match["begin"]), "end": float(match["end"])}
    if schedule:
        fields["schedule"] = schedule
    return _strength(text, fields)


def with_masks(adapters: list[Strength], masks: list[str]) -> tuple[Strength, ...]:
    """The adapters with the masks that `N:IMAGE` gives the N-th of them.

    Raises:
        UserError: if there is no such adapter.
    """
    for text in masks:
        number, colon, file = text.partition(":")
        if not (colon and file and number.isdecimal() and 1 <= int(number) <= len(adapters)):
            raise UserError(
                f"--mask {text!r} does not name one of the {len(adapters)} adapters.",
                "Write it like 1:mask.png.",
            )
        index = int(number) - 1
        adapters[index] = adapters[index].model_copy(update={"mask": Path(file)})
    return tuple(adapters)


def numbers(flag: str, text: str) -> tuple[float, ...]:
    """`0,0.5,1` as numbers. Raises UserError naming the flag."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"{flag} {text!r} is not a list of numbers.", "Write it like 0,0.5,1."
        ) from None


def check_output(flag: str, file: Path) -> None:
    """Raises UserError unless `file` can be a PNG in a folder that exists."""
    if file.suffix.lower() != ".png":
        raise UserError(f"{flag} {file} does not end in .png.", "Name a PNG file.")
    if not file.parent.is_dir():
        raise UserError(f"There is no folder {file.parent}.", "Make it first.")


def _strength(text: str, fields: dict[str, Any]) -> Strength:
    try:
        return Strength.model_validate(fields)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        message = problem["msg"].removeprefix("Value error, ")
        raise UserError(f"--adapter {text!r}: {message[0].lower()}{message[1:]}.") from None
