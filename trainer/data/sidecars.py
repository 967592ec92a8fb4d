"""The small files that tell of many images at once: `metadata.jsonl` and `labels.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.data.names import shown
from trainer.errors import DatasetError
from trainer.files import write_atomically

METADATA_FILE = "metadata.jsonl"
"""Captions by file, one JSON object a line: the layout of Hugging Face's image folders."""
LABELS_FILE = "labels.json"
"""In a dataset made by an import: for every image's path inside it, the name it came under."""

_MAX_BYTES = 64 * 2**20
_CAPTION_KEYS = ("text", "caption", "prompt")
_METADATA_ADVICE = 'Each of its lines must be like {"file_name": "a.png", "text": "a cat"}.'


def read_metadata(path: Path, name: str | None = None) -> dict[str, str]:
    """Captions by image path, relative to the folder of `path` and with `/` between folders.

    `name` is what the file is called in errors, if not by its path.

    Raises:
        DatasetError: naming the file and the line that cannot be used.
    """
    called = shown(name or path)
    captions: dict[str, str] = {}
    try:
        lines = _read(path).split("\n")
    except OSError as error:
        raise DatasetError(f"{called} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise DatasetError(
            f"{called} is not in UTF-8, as JSON has to be.", "Save it as UTF-8."
        ) from None
    except ValueError as error:
        raise DatasetError(f"{called} cannot be used: {error}.", "Split it.") from None
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                row = json.loads(line)
                caption = next((row[key] for key in _CAPTION_KEYS if key in row), None)
                captions[str(row["file_name"]).replace("\\", "/")] = (caption or "").strip()
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DatasetError(f"Line {number} of {called} is broken.", _METADATA_ADVICE) from None
    return captions


def read_labels(path: Path, name: str | None = None) -> dict[str, str]:
    """Labels by image path; none if there is no such file.

    Raises:
        DatasetError: if it is not the file that an import writes.
    """
    if not path.exists():
        return {}
    try:
        labels: Any = json.loads(_read(path))
        return {str(key): shown(str(label)) for key, label in labels.items()}
    except (OSError, ValueError, AttributeError):
        raise DatasetError(
            f"{shown(name or path)} cannot be used.", "Remove it: it holds names, no captions."
        ) from None


def write_labels(dataset: Path, labels: Mapping[str, str]) -> None:
    """Replaces the labels of a dataset."""
    content = json.dumps(dict(sorted(labels.items())), ensure_ascii=False, indent=1)
    write_atomically(dataset / LABELS_FILE, content.encode())


def _read(path: Path) -> str:
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"it has over {_MAX_BYTES // 2**20} MiB")
    return path.read_text(encoding="utf-8-sig")
