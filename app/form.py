"""The settings as a form. The walk over the leaves is its only source: labels, help, choices.

Numbers are written as text, so that 1e-4 stays 1e-4 and an empty box means "none". What a person
wrote goes through the same checks as a settings file, and each problem returns to its box.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gradio as gr

from trainer.errors import Problem, SettingsError
from trainer.fields import Leaf, flatten, from_text, leaves, nest
from trainer.settings import Settings, parse

AUTOMATIC = "automatic"
LEAVES: dict[str, Leaf] = {leaf.name: leaf for leaf in leaves(Settings)}
# A page never writes a path: these are chosen by name from a list.
PATHS = tuple(name for name, leaf in LEAVES.items() if leaf.kind == "path")


def to_page(leaf: Leaf, value: Any) -> Any:
    """A setting's value as its component shows it."""
    if leaf.kind == "switch":
        return bool(value)
    if leaf.kind == "choice":
        return AUTOMATIC if value is None else value
    if leaf.kind == "texts":
        return "\n".join(value)
    if value is None:
        return ""
    return _number_text(value) if leaf.kind == "number" else str(value)


def from_page(leaf: Leaf, shown: Any) -> Any:
    """What a component shows as the setting's value, not checked yet."""
    if leaf.kind == "switch":
        return bool(shown)
    if leaf.kind == "texts":
        return [line.strip() for line in str(shown or "").splitlines() if line.strip()]
    if leaf.kind == "choice" and leaf.optional and shown == AUTOMATIC:
        return None
    text = str(shown if shown is not None else "")
    return from_text(leaf, text if leaf.kind == "text" else text.strip())


def _number_text(value: float) -> str:
    """The shortest text that reads back as `value`, as people write it: 0.05, 1e-4, 16."""
    text = f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if 0 < abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:e}".partition("e")
        scientific = f"{float(mantissa):g}e{int(exponent)}"
        return scientific if float(scientific) == value else text
    return text


class Form:
    """One component for each setting, known by the setting's dotted name."""

    def __init__(self) -> None:
        self.components: dict[str, Any] = {}

    def draw(self, name: str, **overrides: Any) -> Any:
        """Draws the component of a setting here; `overrides` are further Gradio arguments."""
        component = _component(LEAVES[name], overrides)
        self.components[name] = component
        return component

    def draw_sections(self, names: Iterable[str]) -> None:
        """Draws the named settings under the headings of their sections, in their order."""
        sections: dict[str, list[str]] = {}
        for name in names:
            sections.setdefault(LEAVES[name].section, []).append(name)
        for section, members in sections.items():
            gr.Markdown(
                f"### {section.capitalize()}\n{LEAVES[members[0]].section_help}",
                elem_classes="section",
            )
            with gr.Row(elem_classes="fields"):
                for name in members:
                    self.draw(name)

    @property
    def outputs(self) -> list[Any]:
        """The components, in the order in which `show` and `show_problems` return updates."""
        return list(self.components.values())

    def read(self, data: Mapping[Any, Any], further: Mapping[str, Any]) -> Settings:
        """The settings that the page shows, with `further` values by dotted name.

        Args:
            data: component to value, as Gradio hands it to a function whose inputs are a set.

        Raises:
            SettingsError: with all problems, each under its dotted name.
        """
        values = {
            name: from_page(LEAVES[name], data[component])
            for name, component in self.components.items()
        }
        return parse(nest({**values, **further}))

    def show(self, settings: Settings, keep: Iterable[str] = ()) -> list[Any]:
        """Updates that make the form show `settings`, leaving alone the settings to `keep`."""
        values = flatten(settings.model_dump())
        kept = set(keep)
        return [
            gr.skip() if name in kept else gr.update(value=to_page(LEAVES[name], values[name]))
            for name in self.components
        ]

    def show_problems(self, problems: Sequence[Problem]) -> list[Any]:
        """Updates that put each problem under its box, and take those of earlier tries away."""
        messages = {problem.name: problem.message for problem in problems}
        return [
            gr.update(info=messages.get(name, LEAVES[name].help),
                      elem_classes=["wrong"] if name in messages else [])
            for name in self.components
        ]  # fmt: skip

    def elsewhere(self, error: SettingsError) -> list[str]:
        """The problems that no box of this form can show."""
        return [str(problem) for problem in error.problems if problem.name not in self.components]


def _component(leaf: Leaf, overrides: Mapping[str, Any]) -> Any:
    common: dict[str, Any] = {
        "label": leaf.label,
        "info": leaf.help,
        "value": to_page(leaf, leaf.default),
        "elem_id": f"set-{leaf.name.replace('.', '-').replace('_', '-')}",
        "interactive": True,
        "min_width": 220,
        **overrides,
    }
    match leaf.kind:
        case "switch":
            return gr.Checkbox(**common)
        case "choice":
            choices = ([AUTOMATIC] if leaf.optional else []) + list(leaf.choices)
            return gr.Dropdown(choices=choices, **common)
        case "texts":
            return gr.Textbox(**{"lines": 3, "placeholder": "One a line", **common})
        case "integer" | "number":
            empty = "none" if leaf.optional else leaf.range
            return gr.Textbox(**{"max_lines": 1, "placeholder": empty, **common})
        case _:
            return gr.Textbox(**{"max_lines": 1, **common})
