"""Every adapter that can be previewed, downloaded or built upon: of runs, and imported files."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from app.catalogue import Catalogue, Remark
from app.jobs import Jobs
from trainer.adapter.header import FileHeader, Header, read_header
from trainer.errors import AdapterError, SettingsError
from trainer.files import replace_atomically

_CHECKPOINT = re.compile(r"step-(\d+)\.safetensors")


@dataclass(frozen=True)
class Entry:
    """An adapter in the library. `ref` names it: `run:ID`, `run:ID@STEP` or `file:NAME`."""

    ref: str
    title: str
    file: Path
    told: FileHeader
    created: float
    size: int
    run: str | None = None
    step: int | None = None
    note: str = ""
    favourite: bool = False

    @property
    def header(self) -> Header:
        return self.told.header

    @property
    def rank(self) -> int | None:
        return self.told.rank

    @property
    def parts(self) -> list[str]:
        """The parts of a base that it acts in: unet, text_encoder, text_encoder_2."""
        return list(self.told.parts)

    @property
    def trigger(self) -> str:
        return ", ".join(self.header.trigger_words)

    @property
    def base(self) -> str | None:
        return self.header.base


class Library:
    """The adapters in a folder of files and in the run directories, each named by its ref."""

    def __init__(self, folder: Path, jobs: Jobs, catalogue: Catalogue) -> None:
        self.folder = folder
        self._jobs = jobs
        self._catalogue = catalogue

    def entries(self) -> list[Entry]:
        """Finished adapters, favourites first, then the newest; broken files are left out."""
        found = [*self._finished(), *self._imported()]
        return sorted(found, key=lambda entry: (not entry.favourite, -entry.created))

    def checkpoints(self) -> list[Entry]:
        """The checkpoints of all runs, newest run and latest step first."""
        found = []
        for id in self._jobs.ids():
            for file in sorted(self._jobs.run(id).checkpoints.glob("step-*.safetensors"))[::-1]:
                step = _CHECKPOINT.fullmatch(file.name)
                entry = step and self._entry(f"run:{id}@{int(step[1])}", file, run=id)
                if step and entry:
                    title = f"{self.title(id)}, step {int(step[1])}"
                    found.append(replace(entry, title=title, step=int(step[1])))
        return found

    def find(self, ref: str) -> Entry:
        """The adapter of that ref; refs are looked up in the listings.

        Raises:
            AdapterError: if there is none.
        """
        listing = self.checkpoints() if "@" in ref else self.entries()
        for entry in listing:
            if entry.ref == ref:
                return entry
        raise AdapterError("There is no such adapter.", "It may have been deleted.")

    def title(self, id: str) -> str:
        """What people call a run."""
        title = self._catalogue.remark(f"run:{id}").title
        if title:
            return title
        try:
            return self._jobs.run(id).settings().output.name
        except SettingsError:
            return id

    def add(self, upload: Path, name: str, title: str = "", note: str = "") -> Entry:
        """Takes a copy of an adapter file into the library, under `name` or one like it.

        Raises:
            AdapterError: if it is not an adapter that can be read.
        """
        if read_header(upload).modules == 0:
            raise AdapterError(f"{name} is not an adapter for Stable Diffusion.")
        target = self.free_name(name)
        replace_atomically(target, lambda temporary: shutil.copyfile(upload, temporary))
        if title or note:
            self._catalogue.write_remark(f"file:{target.name}", Remark(title, note))
        return self.find(f"file:{target.name}")

    def free_name(self, name: str) -> Path:
        """Where a file of this name, or one like it, would not replace another."""
        stem = re.sub(r"[^\w .()+-]", "_", Path(name).stem).strip(" .")[:80] or "adapter"
        target = self.folder / f"{stem}.safetensors"
        number = 2
        while target.exists():
            target = self.folder / f"{stem}-{number}.safetensors"
            number += 1
        return target

    def rename(self, ref: str, title: str) -> None:
        """Gives an adapter the title that its card and its download have."""
        entry = self.find(ref)
        remark = self._catalogue.remark(entry.ref)
        self._catalogue.write_remark(entry.ref, replace(remark, title=title.strip()[:100]))

    def write_note(self, ref: str, note: str) -> None:
        """Replaces what a person wrote about an adapter."""
        entry = self.find(ref)
        remark = self._catalogue.remark(entry.ref)
        self._catalogue.write_remark(entry.ref, replace(remark, note=note.strip()[:2000]))

    def star(self, ref: str) -> None:
        """Makes an adapter a favourite, or no longer one."""
        entry = self.find(ref)
        remark = self._catalogue.remark(entry.ref)
        self._catalogue.write_remark(entry.ref, replace(remark, favourite=not remark.favourite))

    def delete(self, ref: str) -> None:
        """Removes an imported file, or a run with all that it made."""
        entry = self.find(ref)
        if entry.run is not None:
            self._jobs.delete(entry.run)
        else:
            entry.file.unlink()
        self._catalogue.forget(entry.ref)

    def _finished(self) -> Iterator[Entry]:
        for id in self._jobs.ids():
            file = self._jobs.run(id).adapter_file
            if file.exists() and (entry := self._entry(f"run:{id}", file, run=id)):
                yield replace(entry, title=self.title(id))

    def _imported(self) -> Iterator[Entry]:
        for file in self.folder.glob("*.safetensors"):
            if entry := self._entry(f"file:{file.name}", file):
                yield entry

    def _entry(self, ref: str, file: Path, run: str | None = None) -> Entry | None:
        try:
            status = file.stat()
            told = _header(file, status.st_mtime_ns, status.st_size)
        except (AdapterError, FileNotFoundError):
            return None  # broken, or deleted a moment ago
        remark = self._catalogue.remark(ref)
        title = remark.title or file.stem
        return Entry(
            ref=ref,
            title=title,
            file=file,
            told=told,
            created=status.st_mtime,
            size=status.st_size,
            run=run,
            note=remark.note,
            favourite=remark.favourite,
        )


@lru_cache(maxsize=1024)
def _header(file: Path, changed: int, size: int) -> FileHeader:
    """What a file says of itself, kept until the file changes."""
    return read_header(file)
