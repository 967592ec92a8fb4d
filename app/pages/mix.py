"""The adapters of a picture on the page: rows of an adapter and its strength, on or off."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from app.inputs import Inputs
from app.library import Library
from app.pages.frame import AT_ONCE
from app.workbench import Ingredient
from trainer.preview.request import Strength
from trainer.preview.schedule import CONSTANT, Schedule

ROWS = 5
SCHEDULES: dict[str, Schedule] = {
    "all steps": CONSTANT,
    "first half: the composition": Schedule(end=0.5),
    "second half: the detail": Schedule(begin=0.5),
    "fading in": Schedule(first=0),
    "fading out": Schedule(last=0),
}
_FIRST, _FURTHER = 1.0, 0.5  # strengths of a new row
_NONE = ("none", "")


@dataclass(frozen=True)
class Chosen:
    """An adapter in a picture: how strongly, at which steps and where it acts."""

    ingredient: Ingredient
    schedule: Schedule = CONSTANT
    mask: Path | None = None

    def strength(self) -> Strength:
        """The same as the preview worker is told it."""
        it = self.ingredient
        return Strength(
            file=it.entry.file,
            unet=it.unet,
            text_encoder=it.text_encoder,
            blocks=it.blocks,
            schedule=self.schedule,
            mask=self.mask,
        )


@dataclass(frozen=True)
class _Row:
    """The components of one adapter."""

    box: Any
    remove: Any
    on: Any
    adapter: Any
    strength: Any
    apart: Any
    text_encoder: Any
    blocks: Any
    schedule: Any
    mask: Any

    @property
    def inputs(self) -> list[Any]:
        return [
            self.on, self.adapter, self.strength, self.apart, self.text_encoder, self.blocks,
            self.schedule, self.mask,
        ]  # fmt: skip


class Mix:
    """A fixed number of rows, of which those in use are shown."""

    def __init__(self, library: Library, inputs: Inputs) -> None:
        self._library = library
        self._inputs = inputs
        self.rows: list[_Row] = []

    def draw(self) -> None:
        self.rows = [_draw_row(number) for number in range(1, ROWS + 1)]
        self.more = gr.Button("Add another adapter", size="sm", elem_id="more")
        self.shown = gr.Textbox("1", visible=False)
        boxes = [row.box for row in self.rows]
        self.removed: list[Any] = []
        self.more.click(_one_more, self.shown, [self.shown, self.more, *boxes], **AT_ONCE)
        for number, row in enumerate(self.rows, start=1):
            row.apart.input(
                lambda apart, strength: gr.update(visible=apart, value=strength),
                [row.apart, row.strength], row.text_encoder, **AT_ONCE,
            )  # fmt: skip
            if number > 1:
                taken = row.remove.click(
                    _taken_away(number), self.shown,
                    [self.shown, self.more, row.adapter, *boxes], **AT_ONCE,
                )  # fmt: skip
                self.removed.append(taken.then)

    @property
    def changes(self) -> list[Any]:
        """The events after which the picture is another one, but for a new first adapter."""
        events = []
        for row in self.rows:
            events += [row.strength.change, row.text_encoder.change, row.on.input,
                       row.blocks.submit, row.schedule.input, row.mask.upload,
                       row.mask.clear]  # fmt: skip
        return [*events, *(row.adapter.input for row in self.rows[1:])]

    @property
    def inputs(self) -> list[Any]:
        """The components, in the order in which `read` takes their values."""
        return [component for row in self.rows for component in row.inputs]

    @property
    def outputs(self) -> list[Any]:
        """The components, in the order in which `show` returns updates."""
        return [self.shown, self.more, *(row.box for row in self.rows), *self.inputs]

    def read(self, values: Sequence[Any]) -> list[Chosen]:
        """The adapters that are on.

        Raises:
            AdapterError: if one is not in the library any more.
            DatasetError: if a mask is no image that can be read.
        """
        width = len(self.rows[0].inputs)
        chosen = []
        for start in range(0, len(values), width):
            row = values[start : start + width]
            on, ref, unet, apart, text_encoder, blocks, schedule, mask = row
            if on and ref:
                apart_at = float(text_encoder) if apart else None
                entry = self._library.find(ref)
                ingredient = Ingredient(entry, float(unet), apart_at, _rules(blocks))
                kept = self._inputs.take(mask, mask=True) if mask else None
                chosen.append(Chosen(ingredient, SCHEDULES.get(schedule, CONSTANT), kept))
        return chosen

    def show(self, mix: Sequence[tuple[str, Strength]]) -> list[Any]:
        """Updates that show adapters by ref, with their strengths."""
        entries = [*self._library.entries(), *self._library.checkpoints()]
        titles = [(it.title, it.ref) for it in entries]
        inputs: list[Any] = []
        for number in range(ROWS):
            if number < len(mix):
                ref, strength = mix[number]
            else:
                ref, strength = "", _fresh(number)
            apart = strength.text_encoder is not None
            inputs += [
                True,
                gr.update(choices=titles if number == 0 else [_NONE, *titles], value=ref),
                strength.unet,
                apart,
                gr.update(visible=apart, value=strength.in_text),
                " ".join(strength.blocks),
                _title(strength.schedule),
                self._inputs.shown(strength.mask),
            ]
        return [*_rows(range(1, max(1, len(mix)) + 1)), *inputs]


def _fresh(number: int) -> Strength:
    """How a row begins."""
    return Strength(file=Path(), unet=_FURTHER if number else _FIRST)


def _title(schedule: Schedule) -> str:
    return next((title for title, known in SCHEDULES.items() if known == schedule), "all steps")


def _draw_row(number: int) -> _Row:
    mark = "" if number == 1 else f"-{number}"
    with gr.Column(visible=number == 1, elem_classes="ingredient") as box:
        with gr.Row(elem_classes="ingredient-head"):
            adapter = gr.Dropdown([], label="Adapter" if number == 1 else f"Adapter {number}",
                                  elem_id=f"adapter{mark}", scale=1, min_width=160)  # fmt: skip
            on = gr.Checkbox(True, label="On", elem_id=f"on{mark}", scale=0, min_width=60,
                             container=False, interactive=True)  # fmt: skip
            remove = gr.Button("Remove", size="sm", elem_id=f"remove{mark}", scale=0,
                               min_width=80, visible=number > 1)  # fmt: skip
        strength = _slider("Strength" if number == 1 else f"Strength {number}",
                           f"strength{mark}", _FIRST if number == 1 else _FURTHER)  # fmt: skip
        with gr.Accordion("More about it", open=False, elem_id=f"more-about{mark}",
                          elem_classes="slight"):  # fmt: skip
            apart = gr.Checkbox(
                False, label="Another strength for the text encoder", elem_id=f"apart{mark}",
                container=False, interactive=True,
            )  # fmt: skip
            text_encoder = _slider("In the text encoder", f"text-encoder{mark}",
                                   _FIRST if number == 1 else _FURTHER, visible=False)  # fmt: skip
            blocks = gr.Textbox(
                "", label="By block", elem_id=f"blocks{mark}", max_lines=2,
                placeholder="unet.up_blocks=0.5  text_encoder=0",
                info="Factors on the strength; or a list of 17 or 26 of them, 12 or 20 for SDXL. "
                "Enter draws.",
            )  # fmt: skip
            schedule = gr.Dropdown(list(SCHEDULES), value="all steps", label="It acts in",
                                   elem_id=f"schedule{mark}", interactive=True)  # fmt: skip
            mask = gr.Image(label="Only where this picture is white", type="filepath",
                            format="png", sources=["upload"], height=140, buttons=[],
                            elem_id=f"mask{mark}", interactive=True)  # fmt: skip
    return _Row(box, remove, on, adapter, strength, apart, text_encoder, blocks, schedule, mask)


def _rules(text: str) -> tuple[str, ...]:
    """Block weights as they were typed, `unet.up_blocks = 0.5; text_encoder=0` or `1, 0, 0.5`."""
    return tuple(re.sub(r"\s*([=,])\s*", r"\1", text or "").replace(";", " ").split())


def _slider(label: str, id: str, value: float, visible: bool = True) -> Any:
    return gr.Slider(-1, 2, value=value, step=0.05, label=label, elem_id=id, interactive=True,
                     visible=visible)  # fmt: skip


def _one_more(shown: str) -> list[Any]:
    """The first row that is not in use comes into view."""
    numbers = _numbers(shown)
    free = next((n for n in range(1, ROWS + 1) if n not in numbers), None)
    return _rows(numbers | ({free} if free else set()))


def _taken_away(number: int) -> Any:
    def take_away(shown: str) -> list[Any]:
        rows = _rows(_numbers(shown) - {number})
        return [*rows[:2], "", *rows[2:]]

    return take_away


def several(shown: str) -> Any:
    """Makes what concerns several adapters visible only when there are several rows."""
    return gr.update(visible=len(_numbers(shown)) > 1)


def _numbers(shown: str) -> set[int]:
    """The rows in view, as the page remembers them; the first is always there."""
    told = {int(text) for text in str(shown).split(",") if text.isdecimal() and len(text) < 3}
    return {1} | {number for number in told if number <= ROWS}


def _rows(numbers: Any) -> list[Any]:
    """What the page is to remember, the button to add a row, and which rows are in view."""
    shown = sorted(numbers)
    remembered = ",".join(map(str, shown))
    return [
        remembered,
        gr.update(visible=len(shown) < ROWS),
        *(gr.update(visible=number in shown) for number in range(1, ROWS + 1)),
    ]
