"""What the workbench is doing, on every page that can give it something to do."""

from __future__ import annotations

from typing import Any

import gradio as gr
from markupsafe import Markup

from app.faults import guarded
from app.operations import Operation, Operations, Stage
from app.pages.frame import AT_ONCE

_LOOK_EVERY_SECONDS = 1.0
_PRESS = """element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-operation]');
  if (button) trigger('select', { id: button.dataset.operation });
});"""
_TONES = {Stage.DONE: "good", Stage.FAILED: "bad", Stage.CANCELLED: "calm"}


class OperationsPanel:
    """A list of operations that keeps itself up to date; `finished` changes when one is done."""

    def __init__(self, operations: Operations) -> None:
        self.operations = operations

    def draw(self, demo: Any) -> None:
        listed = gr.HTML("", js_on_load=_PRESS, elem_id="operations")
        self.finished = gr.Textbox("", visible=False)
        shown = gr.Textbox("", visible=False)
        outputs = [listed, shown, self.finished]
        listed.select(self._press, None, outputs, **AT_ONCE)
        for event in (gr.Timer(_LOOK_EVERY_SECONDS).tick, demo.load):
            event(self._look, shown, outputs, trigger_mode="once", **AT_ONCE)

    @guarded
    def _look(self, before: str) -> list[Any]:
        now = self.show()
        return [gr.skip()] * 3 if now[1] == before else now

    @guarded
    def _press(self, event: gr.EventData) -> list[Any]:
        """Gives up an operation that is going on, or takes away one that is over."""
        id = str(event._data.get("id", ""))
        self.operations.dismiss(id)
        self.operations.cancel(id)
        return self.show()

    def show(self) -> list[Any]:
        """The list, the same to compare the next one with, and the ids of what is done."""
        listing = self.operations.listing()
        rows = Markup("").join(_row(operation) for operation in listing)
        html = str(Markup('<ul class="operations">{}</ul>').format(rows)) if rows else ""
        done = [operation.id for operation in listing if operation.stage is Stage.DONE]
        return [html, html, " ".join(done)]


def _row(operation: Operation) -> Markup:
    outcome = operation.outcome
    told = {
        Stage.WAITING: "waiting for its turn",
        Stage.WORKING: f"working for {operation.seconds:.0f} s",
        Stage.CANCELLED: "cancelled",
    }.get(operation.stage, outcome.message)
    link = Markup(' <a href="{}">Open</a>').format(outcome.address) if outcome.address else ""
    over = operation.stage.over
    bar = Markup('<span class="meter busy endless"><i></i></span>')
    return Markup(
        '<li class="operation {tone}" role="status"><strong>{title}</strong>'
        '<span class="told">{told}{link}</span>'
        '<button class="icon" data-operation="{id}" aria-label="{verb} {title}">{verb}</button>'
        "{bar}</li>"
    ).format(
        tone=_TONES.get(operation.stage, "busy"),
        title=operation.title,
        told=told,
        link=link,
        id=operation.id,
        verb="Dismiss" if over else "Cancel",
        bar=bar if operation.stage is Stage.WORKING else "",
    )
