"""What can be done with adapters in the library: convert, resize, compose, measure, compare.

Each is a task for `operations`: a command line of the trainer, and what becomes of its result. An
adapter goes into the library with a note on how it was made; a report is kept by the state of the
files that it is about, so that it is made once.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode

from app.library import Entry, Library
from app.operations import Operations, Outcome, Task
from trainer.errors import UserError
from trainer.files import write_atomically

KeyFormat = Literal["kohya", "diffusers"]


@dataclass(frozen=True)
class Ingredient:
    """An adapter in a mix and its weights; that of the text encoder is by default the UNet's, and
    `blocks` multiply both (see `trainer.adapter.block_rules`)."""

    entry: Entry
    unet: float = 1.0
    text_encoder: float | None = None
    blocks: tuple[str, ...] = ()

    @property
    def acts(self) -> bool:
        return bool(self.unet or self.text_encoder)

    def __str__(self) -> str:
        apart = self.text_encoder is not None and self.text_encoder != self.unet
        told = ([f"text encoder {self.text_encoder:g}"] if apart else []) + list(self.blocks)
        return f"{self.unet:g} × {self.entry.title}" + (f" ({', '.join(told)})" if told else "")


Weighted = tuple[Entry, float]
_REPORT, _PICTURE = "report.json", "picture.png"


class Workbench:
    """Queues tasks on the adapters of a library; `folder` keeps the reports.

    `allows` tells of a base that a file names whether it may be read.
    """

    def __init__(
        self,
        folder: Path,
        library: Library,
        operations: Operations,
        allows: Callable[[str], bool],
    ) -> None:
        self._allows = allows
        self.folder = folder
        self.operations = operations
        self._library = library

    def convert(self, entry: Entry, to: KeyFormat) -> str:
        """An adapter with the other key names, as a plain LoRA."""
        name, base = f"{entry.title} ({to})", self._base([entry])

        def finish(scratch: Path, result: Any) -> Outcome:
            lost = f"relative error {percent(result['error'])}"
            note = f"Converted from {entry.title} to {to} keys, {lost}."
            left_out = len(result["unused"])
            told = f" {left_out} tensors were not understood and left out." if left_out else ""
            return self._kept(scratch, name, note + told)

        return self._make(
            f"Convert {entry.title} to {to} keys", name, [entry], finish,
            lambda output: ["convert", str(entry.file), "--to", to, *base, "--output", str(output)],
        )  # fmt: skip

    def resize(self, entry: Entry, rank: int | None, energy: float | None) -> str:
        """An adapter of lower rank: at most `rank`, or as much as the share `energy` needs.

        Raises:
            UserError: unless exactly one of the two is given, in its range.
        """
        if (rank is None) == (energy is None):
            raise UserError("Give a rank, or the share of energy to keep.")
        cut = _cut(rank, energy)
        to = f"rank {rank}" if rank is not None else percent(energy)
        name, base = f"{entry.title}, {to}", self._base([entry])

        def finish(scratch: Path, result: Any) -> Outcome:
            note = (
                f"Resized from {entry.title} to rank {result['rank']}: it loses "
                f"{percent(result['error'])} in all, at most {percent(result['worst_error'])} in "
                "a layer."
            )
            return self._kept(scratch, name, note)

        return self._make(
            f"Resize {entry.title} to {to}", name, [entry], finish,
            lambda output: ["resize", str(entry.file), *cut, *base, "--output", str(output)],
        )  # fmt: skip

    def compose(self, mix: Sequence[Ingredient], name: str, rank: int | None = None) -> str:
        """One adapter that acts as several at their weights: exactly, or compressed to a rank.

        Raises:
            UserError: if there is nothing to compose, or no name.
        """
        acting = [ingredient for ingredient in mix if ingredient.acts]
        name = name.strip()
        if not acting:
            raise UserError("There is nothing to save: no adapter acts.", "Give one a weight.")
        if not name:
            raise UserError("The mix needs a name.")
        method = (
            ["--method", "svd", *_cut(rank, None)] if rank is not None else ["--method", "concat"]
        )
        said = " + ".join(map(str, acting))
        given = [*_weighed(acting), *self._base([it.entry for it in acting])]

        def finish(scratch: Path, result: Any) -> Outcome:
            error = result["error"]
            lost = "the exact sum" if error is None else f"it loses {percent(error)}"
            return self._kept(scratch, name, f"Mixed from {said}: rank {result['rank']}, {lost}.")

        return self._make(
            f"Save {said} as {name}", name, [it.entry for it in acting], finish,
            lambda output: ["compose", *given, *method, "--output", str(output)],
        )  # fmt: skip

    def measured(self, entry: Entry) -> dict[str, Any] | None:
        """The facts and norms of an adapter, if `measure` has been done on this file."""
        report = _read(self.folder / _key("inspect", [(entry, 1.0)]) / _REPORT)
        return report if isinstance(report, dict) else None

    def measure(self, entry: Entry) -> str:
        """Reads the tensors of an adapter: how strongly it acts, block by block."""
        key = _key("inspect", [(entry, 1.0)])

        def finish(scratch: Path, result: Any) -> Outcome:
            self._file(key, scratch, result)
            return Outcome("Measured.", address(entry.ref))

        return self.operations.submit(
            Task(
                f"Measure {entry.title}",
                lambda scratch: ["inspect", str(entry.file), "--json"],
                finish,
                _names([entry]),
            )
        )

    def compared(self, one: Weighted, other: Weighted) -> tuple[dict[str, Any], str] | None:
        """The conflict report on two adapters and the key of its picture, if there is one yet."""
        key = _key("compare", [one, other])
        report = _read(self.folder / key / _REPORT)
        return (report[0], key) if isinstance(report, list) else None

    def compare(self, one: Weighted, other: Weighted) -> str:
        """Tells whether two adapters get in each other's way.

        Raises:
            UserError: if they are one and the same.
        """
        if one[0].ref == other[0].ref:
            raise UserError("An adapter cannot be compared with itself.", "Choose another.")
        key = _key("compare", [one, other])
        given = [f"{entry.file}={weight!r}" for entry, weight in (one, other)]
        given += self._base([one[0], other[0]])

        def finish(scratch: Path, result: Any) -> Outcome:
            self._file(key, scratch, result)
            return Outcome(result[0]["words"].partition("\n")[0], address(one[0].ref, other[0].ref))

        return self.operations.submit(
            Task(
                f"Compare {one[0].title} with {other[0].title}",
                lambda scratch: [
                    "compare", *given, "--json", "--picture", str(scratch / _PICTURE),
                ],
                finish,
                _names([one[0], other[0]]),
            )
        )  # fmt: skip

    def picture(self, key: str) -> Path:
        """The picture of a comparison; the file need not exist."""
        return self.folder / key / _PICTURE

    def _make(
        self,
        title: str,
        name: str,
        sources: Sequence[Entry],
        finish: Callable[[Path, Any], Outcome],
        arguments: Callable[[Path], list[str]],
    ) -> str:
        """Queues a task that writes one adapter file."""
        stem = self._library.free_name(name).stem
        return self.operations.submit(
            Task(
                title,
                lambda scratch: [*arguments(scratch / f"{stem}.safetensors"), "--json"],
                finish,
                _names(sources),
            )
        )

    def _base(self, entries: Sequence[Entry]) -> list[str]:
        """The base that a task on DoRA adapters needs, if they name one and it may be read."""
        bases = {it.base for it in entries if "DoRA" in it.told.kinds}
        base = bases.pop() if len(bases) == 1 else None
        return ["--base", base] if base and self._allows(base) else []

    def _kept(self, scratch: Path, name: str, note: str) -> Outcome:
        """Takes what a task wrote into the library."""
        (made,) = scratch.glob("*.safetensors")
        entry = self._library.add(made, made.name, title=name, note=note)
        return Outcome(note, address(entry.ref))

    def _file(self, key: str, scratch: Path, report: Any) -> None:
        home = self.folder / key
        home.mkdir(parents=True, exist_ok=True)
        if (scratch / _PICTURE).exists():
            shutil.copyfile(scratch / _PICTURE, home / _PICTURE)
        write_atomically(home / _REPORT, json.dumps(report).encode())


def address(ref: str, other: str = "") -> str:
    """The address of an adapter's page, with the comparison to another one open."""
    return "/library?" + urlencode({"adapter": ref, **({"with": other} if other else {})})


def percent(share: float | None) -> str:
    """A share in per cent with two telling digits, and no digit where there is nothing."""
    if not share:
        return "0 %"
    if share < 1e-4:
        return "under 0.01 %"
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def whole(text: str) -> int | None:
    """A rank as it was typed; nothing typed is None.

    Raises:
        UserError: if it is no whole number.
    """
    if not text.strip():
        return None
    if not text.strip().isdecimal() or len(text.strip()) > 6:
        raise UserError(f"A rank is a whole number from 1 to 1024, not {text.strip()[:40]}.")
    return int(text)


def _weighed(mix: Sequence[Ingredient]) -> list[str]:
    """The arguments of `compose` for a mix."""
    files, rules = [], []
    for number, it in enumerate(mix, start=1):
        text_encoder = it.unet if it.text_encoder is None else it.text_encoder
        files.append(f"{it.entry.file}={it.unet!r}:{text_encoder!r}")
        rules += [f"--block={number}:{rule}" for rule in it.blocks]
    return [*files, *rules]


def _cut(rank: int | None, energy: float | None) -> list[str]:
    if rank is not None:
        if not 1 <= rank <= 1024:
            raise UserError(f"A rank is a whole number from 1 to 1024, not {rank}.")
        return ["--rank", str(rank)]
    if energy is not None and not 0 < energy <= 1:
        raise UserError("The share of energy to keep is above 0 and at most 100 %.")
    return ["--energy", str(energy)]


def _names(entries: Sequence[Entry]) -> dict[Path, str]:
    return {entry.file: entry.title for entry in entries}


def _key(command: str, weighted: Sequence[Weighted]) -> str:
    """A name for what a report depends on: the files' states and their weights."""
    parts = [command]
    for entry, weight in weighted:
        parts += [entry.ref, str(entry.created), str(entry.size), repr(weight)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _read(report: Path) -> Any:
    try:
        return json.loads(report.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
