"""Bases from the hub, out of a cache as huggingface_hub lays it out and without a network."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest

from tests import single_files
from trainer.adapter.header import Header
from trainer.errors import BaseModelError
from trainer.model.bases import Family, HubBase, resolve
from trainer.model.load import load, locate
from trainer.settings import Base

NEW, OLD = "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def put(cache: Path, name: str, commit: str, content: Path, *refs: str) -> Path:
    """Puts a folder or file into the cache as a snapshot of a repository."""
    home = cache / f"models--{name.replace('/', '--')}"
    snapshot = home / "snapshots" / commit
    snapshot.parent.mkdir(parents=True, exist_ok=True)
    (home / "refs").mkdir(exist_ok=True)
    for ref in refs:
        (home / "refs" / ref).write_text(commit)
    if content.is_dir():
        shutil.copytree(content, snapshot)
    else:
        snapshot.mkdir()
        shutil.copy(content, snapshot / content.name)
    return snapshot


def test_a_cached_base_needs_no_network(cache: Path, small_base: Path) -> None:
    snapshot = put(cache, "owner/name", NEW, small_base, "main")
    assert locate("owner/name") == snapshot
    model = load(Base(model="owner/name", device="cpu"))
    assert model.prediction_type == "v_prediction"


def test_a_revision_is_a_branch_a_tag_or_a_commit(
    cache: Path, small_base: Path, tiny_base: Path
) -> None:
    new = put(cache, "owner/name", NEW, small_base, "main")
    old = put(cache, "owner/name", OLD, tiny_base, "v1.0")
    assert locate("owner/name") == new
    assert locate("owner/name@v1.0") == locate(f"owner/name@{OLD}") == old
    assert load(Base(model="owner/name@v1.0", device="cpu")).prediction_type == "epsilon"


def test_a_commit_in_the_cache_is_not_asked_for_unless_a_part_is_missing(
    cache: Path, small_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AskedError(Exception):
        pass

    def ask(*arguments: object, **named: object) -> None:
        raise AskedError

    snapshot = put(cache, "owner/name", NEW, small_base)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for method in ("repo_info", "list_repo_tree"):
        monkeypatch.setattr(huggingface_hub.HfApi, method, ask)
    assert locate(f"owner/name@{NEW}") == snapshot
    weights = snapshot / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model-00001-of-00002.safetensors"))
    with pytest.raises(AskedError):
        locate(f"owner/name@{NEW}")
    for lost in ("vae/config.json", "tokenizer"):
        broken = put(cache, f"owner/{lost[:3]}", NEW, small_base)
        (broken / lost).rename(broken / "elsewhere")
        with pytest.raises(AskedError):
            locate(f"owner/{lost[:3]}@{NEW}")


def test_half_precision_alone_is_enough(cache: Path, small_base: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(small_base, half)
    for file in half.glob("*/*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    put(cache, "owner/half", NEW, half, "main")
    assert load(Base(model="owner/half", device="cpu")).family is Family.SD1


def test_a_file_on_the_hub(cache: Path, tmp_path: Path) -> None:
    pipeline = single_files.pipeline(Family.SD1)
    file = single_files.write(tmp_path / "x-1.0.safetensors", pipeline, Family.SD1)
    snapshot = put(cache, "owner/name", NEW, file, "main")
    assert locate("owner/name/x-1.0.safetensors") == snapshot / file.name
    assert load(Base(model=f"owner/name@{NEW}/{file.name}", device="cpu")).family is Family.SD1


def test_what_is_not_there_is_told(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="'owner/name' is neither a folder here nor in the"):
        locate("owner/name")
    with pytest.raises(BaseModelError, match="'owner/name@v2' is neither"):
        locate("owner/name@v2")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "README.md").write_text("one checkpoint")
    put(cache, "owner/empty", NEW, empty, "main")
    with pytest.raises(BaseModelError, match=r"has no model_index\.json\. Name the checkpoint"):
        locate("owner/empty")


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("a/b", HubBase("a/b")),
        ("stabilityai/sd-x2.1_b@main", HubBase("stabilityai/sd-x2.1_b", "main")),
        ("a/b@refs/pr/7", HubBase("a/b", "refs/pr/7")),
        ("a/b/c d/e.safetensors", HubBase("a/b", None, "c d/e.safetensors")),
        ("a/b@v1/e.safetensors", HubBase("a/b", "v1", "e.safetensors")),
    ],
)
def test_hub_references(reference: str, expected: HubBase) -> None:
    assert resolve(reference) == expected


@pytest.mark.parametrize(
    "reference",
    ["a/b--c", "a..b/c", "a/b.git", "a/b-", f"a/{'b' * 100}", "a/b@", "a/b/c",
     "a/b/../../x.safetensors", "/a/b", "a", "ä/b", "a/b@x y", "a/b/x.ckpt"],
)  # fmt: skip
def test_what_cannot_be_a_hub_reference_is_refused(reference: str) -> None:
    with pytest.raises(BaseModelError):
        resolve(reference)


def test_a_private_file_keeps_a_hub_reference_but_no_path_that_looks_like_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "work").mkdir(parents=True)
    (tmp_path / "my" / "work" / "secret.safetensors").write_bytes(b"")
    for base, shown in (
        ("a/b@v1", "a/b@v1"),
        ("a/b/c.safetensors", "a/b/c.safetensors"),
        ("my/work/secret.safetensors", "secret.safetensors"),
        ("my/work", "work"),
    ):
        header = Header(name="x", family=Family.SD1, base=base).without_private_parts()
        assert header.base == shown
