"""Settings from outside: nested dicts and JSON files, checked, and brought up to date if old."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainer.errors import Problem, SettingsError
from trainer.fields import problems_of
from trainer.settings import Settings

FORMAT_VERSION = 1

# Each entry turns a tree of version n into one of version n + 1.
_MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


def parse(tree: dict[str, Any]) -> Settings:
    """Settings from a nested dict of plain values.

    Raises:
        SettingsError: with every problem found, each under its dotted name.
    """
    version = tree.get("version", FORMAT_VERSION)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise SettingsError([Problem("version", f"must be a number from 1 to {FORMAT_VERSION}")])
    if version > FORMAT_VERSION:
        raise SettingsError(
            [
                Problem(
                    "version",
                    f"is {version}, but this program knows versions up to "
                    f"{FORMAT_VERSION}; install a newer LoRA Atelier",
                )
            ]
        )
    for step in range(version, FORMAT_VERSION):
        tree = _MIGRATIONS[step](tree)
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise SettingsError(problems_of(error, Settings)) from None


def load(path: Path) -> Settings:
    """Settings from a JSON file.

    Raises:
        SettingsError: if the file is missing, is not JSON, or holds wrong settings.
    """
    return parse(load_tree(path))


def load_tree(path: Path) -> dict[str, Any]:
    """The nested dict in a JSON settings file, unchecked."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SettingsError([Problem("", f"cannot read {path}: {error.strerror}")]) from None
    except ValueError as error:
        raise SettingsError([Problem("", f"{path} is not JSON: {error}")]) from None
    if not isinstance(tree, dict):
        raise SettingsError([Problem("", f"{path} must hold a JSON object")])
    return tree
