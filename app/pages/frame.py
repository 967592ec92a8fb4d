"""What every page has around it: the header, and the strip about the run being trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import gradio as gr

from app import parts
from app.faults import guarded
from app.workshop import Workshop

LOOK_EVERY_SECONDS = 2.0
# Goes to the address that an event put into a hidden box.
GO = "(address) => { if (address) window.location.href = address; }"
# Small questions are answered at once, past the queue, without a veil over what they change.
AT_ONCE: dict[str, Any] = {
    "queue": False,
    "show_progress": "hidden",
    "concurrency_limit": None,
    "api_visibility": "private",
}
# What says a word beside its answer, `gr.Warning` or `gr.Info`: past the queue, that would be lost.
TELLING: dict[str, Any] = {**AT_ONCE, "queue": True}
# At once, for choices: by default, Gradio drops one that is made while the last is being answered.
LATEST: dict[str, Any] = {**AT_ONCE, "trigger_mode": "always_last"}


@contextlib.contextmanager
def page(workshop: Workshop, demo: Any, active: str) -> Iterator[None]:
    """Draws the frame; what is drawn in the block comes below it."""
    gr.HTML(parts.header(active), elem_id="masthead")
    strip = gr.HTML("", elem_id="job-strip")
    shown = gr.Textbox("", visible=False)

    @guarded
    def look(before: str, request: gr.Request) -> tuple[Any, Any]:
        now = str(parts.job_strip(workshop, request.query_params.get("run")))
        return (gr.skip(), gr.skip()) if now == before else (now, now)

    with gr.Column(elem_classes="page"):
        yield
    gr.Timer(LOOK_EVERY_SECONDS).tick(look, shown, [strip, shown], trigger_mode="once", **AT_ONCE)
    demo.load(look, shown, [strip, shown], **AT_ONCE)
