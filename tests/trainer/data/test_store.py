"""The store: whole entries or none, whatever happens to the files."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from trainer.data.store import DiskStore, MemoryStore, Store

KEY, OTHER = "ab" * 32, "cd" * 32
TENSORS = {"latents": torch.randn(4, 8, 6), "mask": torch.rand(8, 6)}


def same(one: dict[str, torch.Tensor] | None, other: dict[str, torch.Tensor]) -> bool:
    return one is not None and all(torch.equal(one[name], other[name]) for name in other)


def file_of(store: DiskStore) -> Path:
    (file,) = (path for path in store.folder.rglob("*") if path.is_file())
    return file


@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_what_is_put_is_found(kind: str, tmp_path: Path) -> None:
    store: Store = DiskStore(tmp_path) if kind == "disk" else MemoryStore()
    assert not store.has(KEY) and store.get(KEY) is None
    store.put(KEY, TENSORS)
    assert store.has(KEY) and not store.has(OTHER)
    assert same(store.get(KEY), TENSORS)


def test_another_process_finds_it_and_numbers_keep_their_format(tmp_path: Path) -> None:
    DiskStore(tmp_path).put(KEY, {"hidden": TENSORS["mask"].bfloat16()})
    found = DiskStore(tmp_path).get(KEY)
    assert found is not None and found["hidden"].dtype is torch.bfloat16


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign", "gone"])
def test_a_damaged_entry_counts_as_missing_and_can_be_put_again(
    damage: str, tmp_path: Path
) -> None:
    store = DiskStore(tmp_path)
    store.put(KEY, TENSORS)
    file = file_of(store)
    content = file.read_bytes()
    match damage:
        case "cut":
            file.write_bytes(content[:-100])
        case "flipped":
            file.write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
        case "empty":
            file.write_bytes(b"")
        case "foreign":
            file.write_bytes(b"<html>" * 20)
        case "gone":
            file.unlink()
    assert store.get(KEY) is None
    store.put(KEY, TENSORS)
    assert same(store.get(KEY), TENSORS)


def test_where_nothing_can_be_written_memory_does(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = DiskStore(tmp_path / "file" / "folder")
    store.put(KEY, TENSORS)
    assert store.has(KEY) and same(store.get(KEY), TENSORS)


def test_the_longest_unused_entries_go_first_and_those_of_today_never(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    keys = [f"{number:02x}" * 32 for number in range(4)]
    for age, key in enumerate(keys):  # 0, 2, 4 and 6 days
        store.put(key, TENSORS)
        (file,) = (tmp_path / key[:2]).iterdir()
        used = time.time() - age * 2 * 24 * 3600
        os.utime(file, (used, used))
    size = file.stat().st_size
    store.prune(most_bytes=3 * size)
    assert [store.get(key) is not None for key in keys] == [True, True, True, False]
    assert store.has(keys[2])  # is used now
    store.prune(most_bytes=0)
    assert [store.get(key) is not None for key in keys] == [True, False, True, False]
