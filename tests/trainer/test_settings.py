"""The settings tree: what it refuses, and that every form of it is the same tree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer import settings_file
from trainer.errors import SettingsError
from trainer.fields import Leaf, flatten, from_text, leaves, nest
from trainer.presets import PRESETS
from trainer.settings import Dataset, Settings
from trainer.settings_file import load, parse

LEAVES = list(leaves(Settings))


def _values(leaf: Leaf) -> st.SearchStrategy[object]:
    """Valid values of a leaf."""
    match leaf.kind:
        case "choice":
            values: st.SearchStrategy[object] = st.sampled_from(leaf.choices)
        case "switch":
            values = st.booleans()
        case "integer":
            step = int(leaf.multiple_of or 1)
            low = int(leaf.minimum or 0) // step
            high = int(leaf.maximum or 5000) // step - leaf.maximum_excluded
            values = st.integers(low, high).map(lambda number: number * step)
        case "number":
            values = st.floats(
                leaf.minimum, leaf.maximum, exclude_min=leaf.minimum_excluded,
                exclude_max=leaf.maximum_excluded, allow_nan=False, allow_infinity=False,
            )  # fmt: skip
        case "path":
            values = st.sampled_from([Path("a"), Path("/b/c d"), Path("é")])
        case "texts":
            values = st.lists(st.text(max_size=20), max_size=4).map(tuple)
        case "text" if leaf.name == "dataset.background":
            values = st.from_regex(r"#[0-9a-fA-F]{6}", fullmatch=True)
        case "text" if leaf.name == "dataset.trigger":
            values = st.from_regex(r"[a-z]+( [a-z]+)?", fullmatch=True)
        case "text":
            values = st.from_regex(r"[a-zA-Z0-9 é.-]{1,20}", fullmatch=True)
    return st.one_of(st.none(), values) if leaf.optional else values


def _consistent(values: dict[str, object]) -> bool:
    """Whether the values agree with each other, each being valid by itself."""
    lowest, highest = (values.get(f"training.{name}_timestep") for name in ("min", "max"))
    in_order = (lowest or 0) <= (999 if highest is None else highest)  # type: ignore[operator]
    has_hidden = values.get("adapter.kind", "lora") in ("lora", "dora")
    return in_order and (has_hidden or not values.get("adapter.dropout"))


@given(
    st.fixed_dictionaries({}, optional={leaf.name: _values(leaf) for leaf in LEAVES}).filter(
        _consistent
    )
)
def test_every_valid_tree_survives_json(values: dict[str, object]) -> None:
    wanted = parse(nest(values))
    assert parse(json.loads(wanted.to_json())) == wanted
    flat = flatten(wanted.model_dump())
    assert all(flat[name] == value for name, value in values.items())


@given(st.data())
def test_text_from_a_form_or_flag_is_the_value_itself(data: st.DataObject) -> None:
    leaf = data.draw(st.sampled_from([leaf for leaf in LEAVES if leaf.kind != "texts"]))
    value = data.draw(_values(leaf))
    text = "none" if value is None else str(value)
    tree = parse(nest({leaf.name: from_text(leaf, text)}))
    expected = parse(nest({leaf.name: value}))
    # Blanks around a person's text are theirs; only the empty text means none.
    assert tree == expected


def test_timesteps_out_of_order_are_refused() -> None:
    with pytest.raises(SettingsError, match="training: min_timestep must not be above"):
        parse(nest({"training.min_timestep": 500, "training.max_timestep": 400}))


def test_every_value_but_the_version_is_a_setting() -> None:
    assert {leaf.name for leaf in LEAVES} == flatten(Settings().model_dump()).keys() - {"version"}


def test_blanks_around_a_trigger_are_no_part_of_it() -> None:
    triggers = [Dataset(trigger=text).trigger for text in (" zkv  person ", "  ", "")]
    assert triggers == ["zkv  person", None, None]


def test_every_setting_is_explained() -> None:
    for leaf in LEAVES:
        assert leaf.help.endswith("."), leaf.name
        assert leaf.section_help, leaf.name


def test_the_tree_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().adapter.rank = 4  # type: ignore[misc]


def test_all_problems_are_reported_together_by_name() -> None:
    wrong = {
        "adapter.rank": 0,
        "optimizer.learning_rate": "fast",
        "optimizer.learningrate": 1e-4,
        "training.steps": -3,
        "loss.noise_offset": float("nan"),
        "output.name": "../escape",
        "turbo": True,
    }
    with pytest.raises(SettingsError) as caught:
        parse(nest(wrong))
    problems = {problem.name: problem.message for problem in caught.value.problems}
    assert problems.keys() == wrong.keys()
    assert "did you mean optimizer.learning_rate?" in problems["optimizer.learningrate"]
    assert problems["adapter.rank"] == "should be greater than or equal to 1 (got 0)"


@pytest.mark.parametrize("version", [0, -1, "1", None, True, 2.0])
def test_a_version_that_is_none_is_refused(version: object) -> None:
    with pytest.raises(SettingsError, match="version"):
        parse({"version": version})


def test_a_newer_version_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match="version: is 99, but this program knows"):
        parse({"version": 99})


def test_an_older_version_is_migrated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_file, "FORMAT_VERSION", 2)
    monkeypatch.setattr(
        settings_file,
        "_MIGRATIONS",
        {1: lambda tree: {"adapter": {"rank": tree["adapter"]["dimension"]}}},
    )
    assert parse({"version": 1, "adapter": {"dimension": 5}}).adapter.rank == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "is not JSON"), (b"[1]", "must hold a JSON object"), (b"\xff\xfe\x00", "is not JSON")],
)
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "settings.json"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=message):
        load(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot read"):
        load(tmp_path / "no.json")


def test_save_then_load_is_the_same(tmp_path: Path) -> None:
    wanted = parse(nest({"samples.prompts": ["a", "b"], "dataset.folder": "x y"}))
    wanted.save(tmp_path / "settings.json")
    assert load(tmp_path / "settings.json") == wanted


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_say_more_than_the_defaults(name: str) -> None:
    assert PRESETS[name].settings() != Settings()
