"""The trainer's commands on adapter files without torch: the right files and answers, at once.

An output whose name has `fail` in it is refused; one with `slow` is never finished.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
from pathlib import Path

from PIL import Image

from tests.app.adapters import write_adapter
from trainer.adapter.header import read_header

_BLOCKS = {"text_encoder": 3.0, "unet.down_blocks.0": 4.0}


def main(arguments: list[str]) -> int:
    command, *rest = arguments
    assert "--json" in rest
    options = dict(itertools.pairwise(rest))
    for given in itertools.takewhile(lambda it: not it.startswith("--"), rest):
        read_header(Path(given.partition("=")[0]))
    if command == "inspect":
        print(json.dumps({"blocks": _BLOCKS, "norm": 5.0}))
    elif command == "compare":
        Image.new("RGB", (40, 20), "orange").save(options["--picture"])
        print(json.dumps([{"names": ["one", "other"], "words": "They mix well.\nIndeed."}]))
    else:
        return _write(Path(options["--output"]), exact="svd" not in rest)
    return 0


def _write(output: Path, exact: bool) -> int:
    if "fail" in output.name:
        print(f"atelier: {output} cannot be written: the disk is full.", file=sys.stderr)
        return 2
    if "slow" in output.name:
        threading.Event().wait()
    write_adapter(output, output.stem)
    error = {"error": None if exact else 0.034, "worst_error": 0.2, "unused": []}
    print(json.dumps({"output": str(output), "rank": "2", **error}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
