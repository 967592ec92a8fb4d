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
from trainer.settings import Settings
from trainer.settings_file import parse

AUTOMATIC, ON, OFF = "automatic", "on", "off"
LEAVES: dict[str, Leaf] = {leaf.name: leaf for leaf in leaves(Settings)}
# A page never writes a path: these are chosen by name from a list.
PATHS = tuple(name for name, leaf in LEAVES.items() if leaf.kind == "path")


def to_page(leaf: Leaf, value: Any) -> Any:
    """A setting's value as its component shows it."""
    if leaf.kind == "switch" and not leaf.optional:
        return bool(value)
    if value is None and leaf.kind in ("switch", "choice"):
        return AUTOMATIC
    if leaf.kind == "switch":
        return ON if value else OFF
    if leaf.kind == "choice":
        return value
    if leaf.kind == "texts":
        return "\n".join(value)
    if value is None:
        return ""
    return _number_text(value) if leaf.kind == "number" else str(value)


def from_page(leaf: Leaf, shown: Any) -> Any:
    """What a component shows as the setting's value, not checked yet."""
    if leaf.kind == "switch" and not leaf.optional:
        return bool(shown)
    if leaf.kind == "switch":
        return {ON: True, OFF: False}.get(str(shown))
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
        self.sections: dict[str, tuple[Any, list[str]]] = {}

    def draw(self, name: str, **overrides: Any) -> Any:
        """Draws the component of a setting here; `overrides` are further Gradio arguments."""
        component = _component(LEAVES[name], overrides)
        self.components[name] = component
        return component

    def draw_sections(self, names: Iterable[str]) -> None:
        """Draws the named settings in their sections, each folded away, in their order."""
        sections: dict[str, list[str]] = {}
        for name in names:
            sections.setdefault(LEAVES[name].section, []).append(name)
        for section, members in sections.items():
            title = f"{section.capitalize()} ({len(members)})"
            with gr.Accordion(title, open=False, elem_id=f"section-{section}",
                              elem_classes="section") as box:  # fmt: skip
                gr.Markdown(LEAVES[members[0]].section_help)
                with gr.Row(elem_classes="fields"):
                    for name in members:
                        self.draw(name)
            self.sections[section] = (box, members)

    @property
    def boxes(self) -> list[Any]:
        """The folded sections, in the order in which `open_sections` returns updates."""
        return [box for box, _ in self.sections.values()]

    @property
    def found(self) -> list[Any]:
        """What `find` returns updates for: the sections, then their settings."""
        members = [name for _, members in self.sections.values() for name in members]
        return [*self.boxes, *(self.components[name] for name in members)]

    def find(self, wanted: str) -> list[Any]:
        """Updates that show the settings in whose name or help all words of `wanted` are; all of
        them, folded away again, if there are none."""
        words = wanted.casefold().split()
        boxes, settings = [], []
        for _, members in self.sections.values():
            hits = [all(word in _searched(LEAVES[name]) for word in words) for name in members]
            boxes.append(gr.update(visible=any(hits), open=bool(words)))
            settings += [gr.update(visible=hit) for hit in hits]
        return [*boxes, *settings]

    def open_sections(self, problems: Sequence[Problem]) -> list[Any]:
        """Updates that unfold the sections in which there are problems."""
        wrong = {problem.name for problem in problems}
        return [
            gr.update(open=True, visible=True) if wrong.intersection(members) else gr.skip()
            for _, members in self.sections.values()
        ]

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

    def restore(self, values: Mapping[str, Any]) -> list[Any]:
        """Updates that show what a person had written, by the settings' names; nothing is certain
        about the values, and those that a component cannot show are left out."""
        return [
            gr.update(value=values[name])
            if _can_show(LEAVES[name], values.get(name))
            else gr.skip()
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


def differences(
    settings: Settings, preset: Settings, apart: Iterable[str]
) -> list[tuple[str, str, str]]:
    """Label, value and the preset's value of each setting that differs, but for those `apart`."""
    now, then = flatten(settings.model_dump()), flatten(preset.model_dump())
    return [
        (leaf.label, _said(leaf, now[name]), _said(leaf, then[name]))
        for name, leaf in LEAVES.items()
        if name not in set(apart) and now[name] != then[name]
    ]


def _said(leaf: Leaf, value: Any) -> str:
    if leaf.kind == "switch" and value is not None:
        return ON if value else OFF
    shown = str(to_page(leaf, value)).replace("\n", ", ")
    return shown or "none"


def _choices(leaf: Leaf) -> list[str]:
    """What can be chosen for a choice, or for a switch that may be left to decide itself."""
    known = [ON, OFF] if leaf.kind == "switch" else list(leaf.choices)
    return [AUTOMATIC, *known] if leaf.optional else known


def _can_show(leaf: Leaf, value: Any) -> bool:
    if leaf.kind == "switch" and not leaf.optional:
        return isinstance(value, bool)
    if leaf.kind in ("switch", "choice"):
        return value in _choices(leaf)
    return isinstance(value, str)


def _searched(leaf: Leaf) -> str:
    return f"{leaf.name} {leaf.label} {leaf.help}".replace("_", " ").casefold()


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
        case "switch" if not leaf.optional:
            return gr.Checkbox(**common)
        case "switch" | "choice":
            return gr.Dropdown(choices=_choices(leaf), **common)
        case "texts":
            return gr.Textbox(**{"lines": 3, "placeholder": "One a line", **common})
        case "integer" | "number":
            empty = "none" if leaf.optional else leaf.range
            return gr.Textbox(**{"max_lines": 1, "placeholder": empty, **common})
        case _:
            return gr.Textbox(**{"max_lines": 1, **common})
