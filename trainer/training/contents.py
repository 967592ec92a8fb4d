"""What a run learns from, in short: it tells at resume whether the images are still the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from trainer.data.dataset import Example
from trainer.data.names import listed

Contents = Mapping[str, str]  # image, relative to the dataset's folder -> hash of all that counts


def contents(folder: Path, examples: Iterable[Example]) -> dict[str, str]:
    """A hash of each image in `folder`, with its mask, caption and repeats."""
    return {name_of(folder, example.image): _digest(example) for example in examples}


def name_of(folder: Path, image: Path) -> str:
    """What an image is called wherever its folder may be."""
    return image.absolute().relative_to(folder.absolute()).as_posix()


def differences(before: Contents, now: Contents) -> str:
    """What has changed, in words that name the images; empty if nothing."""
    edited = {name for name in before.keys() & now.keys() if before[name] != now[name]}
    changes = (
        ("added", now.keys() - before.keys()),
        ("removed", before.keys() - now.keys()),
        ("edited", edited),
    )
    return "; ".join(f"{word}: {listed(sorted(names))}" for word, names in changes if names)


def _digest(example: Example) -> str:
    parts = (example.digest, example.mask_digest, example.caption, str(example.repeats))
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()
