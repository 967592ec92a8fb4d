"""`python -m app`: the web app without the rest of the command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from app.server import serve
from trainer.errors import AtelierError


def main() -> int:
    """Serves until interrupted; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m app", description="Serve the web app.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on; 0 for any")
    parser.add_argument("--data", type=Path, default=Path("data"), help="data directory")
    asked = parser.parse_args()
    try:
        serve(asked.host, asked.port, asked.data)
    except AtelierError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
