"""The command line: subcommands, their flags, and how errors reach the terminal.

Exit codes: 0 done, 1 a failure while working, 2 a mistake in what was asked. Torch is imported by
the commands that need it, so that `--help` and a mistyped flag answer at once.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn

from trainer import cli_adapters, cli_bases, cli_grid, cli_preview, cli_train
from trainer.errors import AtelierError, SettingsError
from trainer.fields import nearest
from trainer.threads import wait_without_spinning

Register = Callable[["argparse._SubParsersAction[argparse.ArgumentParser]"], None]


class Parser(argparse.ArgumentParser):
    """A parser that takes dashes for underscores in flags, and says mistakes in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        given = [_canonical(argument) for argument in (sys.argv[1:] if args is None else args)]
        return super().parse_known_args(given, namespace)


def run(arguments: Sequence[str], more: Sequence[Register] = ()) -> int:
    """Runs one command; returns its exit code. `more` adds commands that live above this package,
    such as `serve`."""
    wait_without_spinning()
    parser = build(more)
    warnings.filterwarnings("ignore", module="PIL")  # what is wrong with an image, we say ourselves
    try:
        chosen, unknown = parser.parse_known_args(list(arguments))
        if unknown:
            return _refuse_unknown(parser, chosen, unknown)
        return int(chosen.run(chosen) or 0)
    except SystemExit as exit_:  # argparse has said what is wrong, or printed its help
        return int(exit_.code or 0)
    except SettingsError as error:
        for problem in error.problems:
            print(f"atelier: {problem}", file=sys.stderr)
        return error.exit_code
    except AtelierError as error:
        print(f"atelier: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("atelier: interrupted", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output has left
        return 1


def build(more: Sequence[Register] = ()) -> argparse.ArgumentParser:
    """The parser of all commands; each sets `run`, a function of the parsed arguments."""
    parser: argparse.ArgumentParser = Parser(
        prog="atelier",
        description="Train, preview and compose LoRA adapters for Stable Diffusion.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    cli_train.register(commands)
    cli_preview.register(commands)
    cli_grid.register(commands)
    cli_adapters.register(commands)
    cli_bases.register(commands)
    for register in more:
        register(commands)
    return parser


def _refuse_unknown(
    parser: argparse.ArgumentParser, chosen: argparse.Namespace, unknown: Sequence[str]
) -> int:
    first = next((argument for argument in unknown if argument.startswith("-")), unknown[0])
    name = first.split("=")[0].lstrip("-")
    meant = nearest(name, list(getattr(chosen, "flags", ())))
    hint = f"; did you mean --{meant}?" if meant else "; see --help"
    print(f"atelier: there is no {first.split('=')[0]}{hint}", file=sys.stderr)
    return 2


def _canonical(argument: str) -> str:
    """`--optimizer.learning-rate=1` is `--optimizer.learning_rate=1`."""
    if not argument.startswith("--") or argument == "--":
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"
