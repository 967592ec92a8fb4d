"""`python -m trainer …` and the `atelier` script."""

from __future__ import annotations

import sys


def main() -> int:
    """Runs the command line; returns the exit code."""
    from trainer.cli import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
