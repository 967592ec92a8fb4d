"""The bases that pages may name: by name what lies in the data directory, and nothing else here."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.bases import Bases
from tests import single_files
from trainer.errors import BaseModelError
from trainer.model.bases import Family


@pytest.fixture
def bases(tmp_path: Path, tiny_base: Path) -> Bases:
    folder = tmp_path / "bases"
    folder.mkdir()
    (folder / "mine").symlink_to(tiny_base)
    pipeline = single_files.pipeline(Family.SD2)
    single_files.write(folder / "velocity.safetensors", pipeline, Family.SD2, prediction_type="v")
    (folder / "old.ckpt").write_bytes(b"PK")
    (folder / "torn.safetensors").write_bytes(b"{")
    (folder / "empty").mkdir()
    (folder / ".hidden.safetensors").write_bytes(b"")
    return Bases(folder)


def test_what_lies_in_the_folder_is_offered_with_what_it_is(bases: Bases) -> None:
    titles = [title for title, _ in bases.choices()]
    assert titles[0].startswith("Embedded base")
    assert titles[-2:] == [
        "mine (Stable Diffusion 1.x)",
        "velocity.safetensors (Stable Diffusion 2.x, v-prediction)",
    ]
    assert all(bases.check(reference) == reference for _, reference in bases.choices())


def test_a_name_is_enough_and_what_is_no_base_is_told(bases: Bases) -> None:
    file = bases.folder / "velocity.safetensors"
    assert bases.check("velocity.safetensors") == str(file)
    assert bases.allows(str(file))
    for name, said in (
        ("old.ckpt", "pickled checkpoint"),
        ("torn.safetensors", "empty or cut off"),
        ("empty", r"no model_index\.json"),
    ):
        with pytest.raises(BaseModelError, match=said):
            bases.check(name)


def test_no_other_path_may_be_named(bases: Bases, tiny_base: Path) -> None:
    for reference in (str(tiny_base), "../bases/mine", ".hidden.safetensors", "/etc/passwd", ""):
        assert not bases.allows(reference)
        with pytest.raises(BaseModelError):
            bases.check(reference)
    assert bases.allows("owner/name@v1")
