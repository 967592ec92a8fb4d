"""A preview worker that draws flat colours: the brightness of an image is its strength.

The prompt `refuse this` is refused, `die` ends the worker, and `take your time` is not begun until
the request is given up.
"""

from __future__ import annotations

import sys
import time

from PIL import Image

from trainer.preview.request import (
    REQUEST,
    Answer,
    Cancel,
    Cancelled,
    Loading,
    Progress,
    Refused,
    Render,
    Rendered,
)


def say(answer: Answer) -> None:
    print(answer.model_dump_json(), flush=True)


def brightness(wanted: Render, factor: float) -> int:
    """Grey of the image: 100 at strength 0, 50 more for each whole strength of all adapters; of
    their mean, unless they act as a sum."""
    total = sum(strength.unet for strength in wanted.adapters) * factor
    if wanted.mixing != "sum":
        total /= len(wanted.adapters)
    return max(0, min(255, round(100 + 50 * total)))


def main() -> None:
    loaded = ""
    for line in iter(sys.stdin.readline, ""):
        wanted = REQUEST.validate_json(line)
        if not isinstance(wanted, Render):
            continue
        began = time.monotonic()
        if loaded != wanted.base:
            say(Loading(id=wanted.id, base=wanted.base))
            loaded = wanted.base
        if wanted.prompt == "refuse this":
            say(Refused(id=wanted.id, message="The prompt was refused.", advice="Try another."))
            continue
        if wanted.prompt == "die":
            sys.exit("the worker dies as it was told")
        if wanted.prompt == "take your time":
            while not isinstance(REQUEST.validate_json(sys.stdin.readline()), Cancel):
                continue
            say(Cancelled(id=wanted.id))
            continue
        say(Progress(id=wanted.id, done=1, total=2))
        wanted.folder.mkdir(parents=True, exist_ok=True)
        files = []
        for number, factor in enumerate(wanted.strip):
            grey = brightness(wanted, factor)
            files.append(wanted.folder / f"{number:02}.png")
            Image.new("RGB", (64, 64), (grey, grey, grey)).save(files[-1])
        say(Rendered(id=wanted.id, files=tuple(files), seconds=time.monotonic() - began))


if __name__ == "__main__":
    main()
