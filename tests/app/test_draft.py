"""Drafts of a form: brought back where they belong, and never trusted."""

from __future__ import annotations

from typing import Any

import pytest

from app.form import LEAVES, Form
from app.pages.draft import restored

DRAFT = {"address": "?dataset=my%20pictures", "values": {"dataset": "my pictures", "rank": "7"}}


def test_a_draft_belongs_to_its_address() -> None:
    assert restored(DRAFT, {"dataset": "my pictures"}) == DRAFT["values"]
    assert restored(DRAFT, {}) == DRAFT["values"]
    assert restored(DRAFT, {"dataset": "others"}) is None
    assert restored(DRAFT, {"dataset": "my pictures", "preset": "sdxl-style"}) is None


@pytest.mark.parametrize(
    "draft", [None, "x", [], {}, {"values": []}, {"values": {"a": {"b": 1}}}, {"values": {"a": []}}]
)
def test_what_is_no_draft_is_passed_over(draft: Any) -> None:
    assert restored(draft, {}) is None


def test_a_form_shows_of_a_draft_what_it_can() -> None:
    import gradio as gr

    form = Form()
    with gr.Blocks():
        for name in ("adapter.rank", "optimizer.name", "dataset.flip"):
            form.draw(name)
    choice = LEAVES["optimizer.name"].choices[-1]
    updates = form.restore({"adapter.rank": "7", "optimizer.name": choice, "dataset.flip": True})
    assert [update["value"] for update in updates] == ["7", choice, True]
    wrong = form.restore({"adapter.rank": 7, "optimizer.name": "evil", "dataset.flip": "yes"})
    assert all("value" not in update for update in wrong)
