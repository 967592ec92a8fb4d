"""How a picture is drawn, apart from its adapters and prompt: one component for each field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from app.inputs import Inputs
from trainer.preview.request import Drawing
from trainer.preview.samplers import KINDS, SAMPLERS

# A number box that is left empty counts as 0 in Gradio, so these are boxes of text.
_SIDE: dict[str, Any] = {"placeholder": "the base's own", "max_lines": 1, "min_width": 100}
_MIXINGS: list[tuple[str, str]] = [
    ("sum: all at once", "sum"),
    ("switch: one after another", "switch"),
    ("composite: the mean of each alone", "composite"),
]


class Recipe:
    """The components by the names of the fields of `Drawing`."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self.components: dict[str, Any] = {}

    def draw_mixing(self) -> None:
        """How several adapters act together, apart from the rest."""
        self.components["mixing"] = gr.Radio(
            _MIXINGS, value="sum", label="Several adapters act as", elem_id="mixing",
            visible=False,
            info="Only the sum can be saved as one file.",
        )  # fmt: skip

    def draw_seed(self) -> None:
        """The seed, and whether to take another one each time."""
        with gr.Row(elem_classes="fields seeding"):
            self.components["seed"] = gr.Number(
                0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1, min_width=110,
                elem_id="seed",
            )  # fmt: skip
            self.fresh = gr.Checkbox(False, label="A new one each time", elem_id="fresh-seed",
                                     min_width=150)  # fmt: skip

    def draw(self) -> None:
        """Everything else."""
        fields = self.components
        fields["base"] = gr.Dropdown([], label="Base", elem_id="base")
        fields["negative_prompt"] = gr.Textbox(label="Negative prompt", elem_id="negative",
                                               max_lines=2)  # fmt: skip
        fields["sampler"] = gr.Dropdown([(KINDS[it].name, it) for it in SAMPLERS], value="ddim",
                                        label="Sampler", elem_id="sampler")  # fmt: skip
        with gr.Row(elem_classes="fields"):
            fields["steps"] = gr.Number(20, label="Steps", precision=0, minimum=1, maximum=200,
                                        min_width=100, elem_id="steps")  # fmt: skip
            fields["guidance"] = gr.Number(7, label="Guidance", minimum=1, maximum=50,
                                           min_width=100, elem_id="guidance")  # fmt: skip
        with gr.Row(elem_classes="fields"):
            fields["width"] = gr.Textbox("", label="Width", elem_id="width", **_SIDE)
            fields["height"] = gr.Textbox("", label="Height", elem_id="height", **_SIDE)
        with gr.Row(elem_classes="fields"):
            fields["clip_skip"] = gr.Number(
                1, label="Clip skip", precision=0, minimum=1, maximum=12, min_width=100,
                elem_id="clip-skip",
                info="1 is the last layer of the text encoder; SDXL begins at 2.",
            )  # fmt: skip
            fields["denoise"] = gr.Number(
                0.75, label="Denoise", minimum=0.05, maximum=1, step=0.05, min_width=100,
                elem_id="denoise", info="Of a picture to begin from: 1 leaves little.",
            )  # fmt: skip
        fields["initial_image"] = gr.Image(
            label="Begin from a picture", type="filepath", format="png", sources=["upload"],
            height=160, buttons=[], elem_id="initial", interactive=True,
        )  # fmt: skip

    @property
    def inputs(self) -> list[Any]:
        """The components, in the order in which `read` takes and `show` returns values."""
        return list(self.components.values())

    def read(self, values: Sequence[Any]) -> dict[str, Any]:
        """The fields of a `Drawing` that have been filled in, not checked yet.

        Raises:
            DatasetError: if the picture to begin from cannot be read.
        """
        given = zip(self.components, values, strict=True)
        fields = {name: value for name, value in given if value not in (None, "")}
        if upload := fields.get("initial_image"):
            fields["initial_image"] = self._inputs.take(str(upload))
        return fields

    def show(self, drawing: Drawing) -> list[Any]:
        """Updates that show how a picture was drawn."""
        values = {name: getattr(drawing, name) for name in self.components}
        values.update({side: str(values[side] or "") for side in ("width", "height")})
        values["initial_image"] = self._inputs.shown(drawing.initial_image)
        return [gr.update(value=value) for value in values.values()]
