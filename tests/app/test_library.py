"""The library: what it lists, finds, takes, renames and deletes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from app.workshop import Workshop
from tests.app.adapters import write_adapter
from tests.app.fakes import until
from trainer.errors import AdapterError
from trainer.run import State


def test_a_finished_run_is_in_the_library_with_its_checkpoints(
    workshop: Workshop, start: Callable[..., str]
) -> None:
    id = start("works", steps=20)
    until(lambda: workshop.jobs.state(id) is State.FINISHED)
    entry = workshop.library.find(f"run:{id}")
    assert (entry.title, entry.trigger, entry.base, entry.rank) == ("works", "pip", "embedded", 2)
    assert [it.step for it in workshop.library.checkpoints()] == [20, 10]
    assert workshop.library.find(f"run:{id}@10").file.name == "step-000010.safetensors"


def test_a_file_is_taken_under_a_free_and_harmless_name(workshop: Workshop, tmp_path: Path) -> None:
    upload = write_adapter(tmp_path / "x.safetensors")
    names = ["../../evil\n<b>.safetensors", "mira.safetensors", "mira.safetensors", "....", "/"]
    files = [workshop.library.add(upload, name).file for name in names]
    assert {file.parent for file in files} == {workshop.data / "adapters"}
    assert [file.name for file in files[1:3]] == ["mira.safetensors", "mira-2.safetensors"]
    assert len(set(files)) == len(names)
    assert all(set(file.name).isdisjoint("<>/\n") for file in files)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04pickle", b"\xff" * 100])
def test_what_is_no_adapter_is_refused(workshop: Workshop, tmp_path: Path, content: bytes) -> None:
    upload = tmp_path / "x.safetensors"
    upload.write_bytes(content)
    with pytest.raises(AdapterError):
        workshop.library.add(upload, upload.name)
    assert list((workshop.data / "adapters").iterdir()) == []


def test_a_broken_file_in_the_folder_does_not_hide_the_others(
    workshop: Workshop, tmp_path: Path
) -> None:
    workshop.library.add(write_adapter(tmp_path / "good.safetensors"), "good.safetensors")
    (workshop.data / "adapters" / "bad.safetensors").write_bytes(b"nothing")
    assert [entry.title for entry in workshop.library.entries()] == ["good"]


def test_renaming_and_favourites_last(workshop: Workshop, tmp_path: Path) -> None:
    upload = write_adapter(tmp_path / "x.safetensors")
    first = workshop.library.add(upload, "first.safetensors")
    workshop.library.add(upload, "second.safetensors")
    workshop.library.rename(first.ref, "  Mira, final  ")
    workshop.library.star(first.ref)
    assert [entry.title for entry in workshop.library.entries()] == ["Mira, final", "second"]
    workshop.library.star(first.ref)
    assert not workshop.library.find(first.ref).favourite


def test_deleting_takes_the_file_and_its_remarks(workshop: Workshop, tmp_path: Path) -> None:
    entry = workshop.library.add(write_adapter(tmp_path / "x.safetensors"), "x.safetensors")
    workshop.library.rename(entry.ref, "gone soon")
    workshop.library.delete(entry.ref)
    assert not entry.file.exists()
    assert workshop.catalogue.remarks() == {}


@pytest.mark.parametrize(
    "ref", ["", "file:../catalogue.sqlite", "run:..", "file:", "run:x@1", "/etc/passwd"]
)
def test_refs_are_looked_up(workshop: Workshop, ref: str) -> None:
    with pytest.raises(AdapterError):
        workshop.library.find(ref)
