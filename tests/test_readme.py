"""The README tells the truth: its commands parse, its targets, files and pictures exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from app.__main__ import register
from trainer.cli import build

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    line.split("#")[0].strip()
    for language, block in BLOCKS
    if language == "sh"
    for line in block.splitlines()
    if line.strip()
]


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("atelier ")])
def test_commands_parse(command: str) -> None:
    chosen, unknown = build((register,)).parse_known_args(shlex.split(command)[1:])
    assert not unknown
    assert callable(chosen.run)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for line in COMMANDS:
        if line.startswith("make "):
            assert line.split()[1] in targets


def test_pictures_and_links_exist() -> None:
    links = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert links
    for target in links:
        assert (ROOT / target).is_file(), target


def test_the_map_is_true() -> None:
    tree = next(block for language, block in BLOCKS if not language and block.startswith("trainer"))
    folder = ROOT
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        names = re.split(r"\s{2,}", line.strip())[0].split()
        if indent == 0:
            folder = ROOT
        for name in names:
            place = (folder / name) if indent < 4 else (folder / "model" / name)
            assert place.exists(), f"the README's map has {name}, but there is no {place}"
        if indent == 0:
            folder = ROOT / names[0]
