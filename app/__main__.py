"""The `atelier` script: every command of the trainer, and `serve`, which starts the web app."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from trainer import cli


def main() -> int:
    """Runs the command line; returns the exit code."""
    return cli.run(sys.argv[1:], more=(register,))


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `serve` to the command line."""
    serve = commands.add_parser("serve", help="start the web app", allow_abbrev=False)
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    serve.add_argument("--port", type=int, default=7860, help="port; 0 takes a free one (7860)")
    serve.add_argument(
        "--data", type=Path, default=Path("data"), help="folder of datasets, runs and adapters"
    )
    serve.set_defaults(run=_serve)


def _serve(arguments: argparse.Namespace) -> None:
    from app.server import serve  # gradio takes seconds to import

    serve(arguments.host, arguments.port, arguments.data)


if __name__ == "__main__":
    sys.exit(main())
