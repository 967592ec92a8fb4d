"""The form is the settings tree: every leaf goes to the page and back."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pytest

from app.form import LEAVES, PATHS, Form, from_page, to_page
from trainer.errors import SettingsError
from trainer.fields import flatten, nest
from trainer.presets import PRESETS
from trainer.settings import Settings
from trainer.settings_file import parse


@pytest.fixture(scope="module")
def form() -> Form:
    """All settings that have a box."""
    form = Form()
    with gr.Blocks():
        form.draw_sections(name for name in LEAVES if name not in PATHS)
    return form


def as_shown(form: Form, settings: Settings) -> dict[Any, Any]:
    """What Gradio would hand to a function whose inputs are the set of all components."""
    values = flatten(settings.model_dump())
    return {
        component: to_page(LEAVES[name], values[name])
        for name, component in form.components.items()
    }


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_settings_go_to_the_page_and_back(form: Form, preset: str | None) -> None:
    settings = PRESETS[preset].settings() if preset else Settings()
    assert form.read(as_shown(form, settings), {}) == settings


@pytest.mark.parametrize("name", LEAVES)
def test_every_leaf_has_a_component_with_its_help(form: Form, name: str) -> None:
    if name in PATHS:
        assert name not in form.components
    else:
        component = form.components[name]
        assert component.info == LEAVES[name].help
        assert component.label == LEAVES[name].label


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1e-4, "1e-4"), (5e-5, "5e-5"), (0.002, "0.002"), (16.0, "16"), (0.0357, "0.0357"), (1, "1")],
)
def test_numbers_are_shown_as_people_write_them(value: float, shown: str) -> None:
    assert to_page(LEAVES["optimizer.learning_rate"], value) == shown


@pytest.mark.parametrize("value", [1 / 3, 1e-5 / 3, 123456.789, 2.5e-17, 1e-300])
def test_no_digit_of_a_number_is_lost(value: float) -> None:
    assert float(to_page(LEAVES["optimizer.learning_rate"], value)) == value


def test_an_empty_box_is_none_only_where_none_is_a_value() -> None:
    assert from_page(LEAVES["optimizer.max_gradient_norm"], " ") is None
    assert from_page(LEAVES["dataset.trigger"], "") is None
    assert from_page(LEAVES["base.precision"], "automatic") is None
    with pytest.raises(SettingsError) as caught:
        parse(nest({"adapter.rank": from_page(LEAVES["adapter.rank"], "")}))
    assert caught.value.problems[0].name == "adapter.rank"


def test_prompts_are_lines() -> None:
    assert from_page(LEAVES["samples.prompts"], " a cat \n\n a dog\n") == ["a cat", "a dog"]


def test_all_problems_return_to_their_boxes_at_once(form: Form) -> None:
    shown = as_shown(form, Settings())
    shown[form.components["adapter.rank"]] = "0"
    shown[form.components["optimizer.learning_rate"]] = "fast"
    with pytest.raises(SettingsError) as caught:
        form.read(shown, {})
    updates = dict(zip(form.components, form.show_problems(caught.value.problems), strict=True))
    wrong = [name for name, update in updates.items() if update["elem_classes"] == ["wrong"]]
    assert wrong == ["adapter.rank", "optimizer.learning_rate"]
    assert "greater than or equal to 1" in updates["adapter.rank"]["info"]
    assert updates["adapter.alpha"]["info"] == LEAVES["adapter.alpha"].help


def test_a_preset_leaves_alone_what_is_kept(form: Form) -> None:
    updates = dict(
        zip(form.components, form.show(PRESETS["sdxl-style"].settings(), ["output.name"]),
            strict=True)
    )  # fmt: skip
    assert updates["adapter.rank"]["value"] == "32"
    assert "value" not in updates["output.name"]
