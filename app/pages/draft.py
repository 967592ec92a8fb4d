"""What a person has written into a form and not sent yet: kept in the browser, and shown again
after a reload.

A draft belongs to the address it was written at: opening the form for another dataset begins anew,
and the bare address brings the latest draft back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

import gradio as gr

# Nothing is secret about it: it is the page's own browser that keeps the draft.
_KEY, _SECRET = "atelier-train-draft", "atelier"
# `atelierDraft` is "edited" as soon as a person touches the form (script.js): what the page itself
# fills in is no draft. It is "forgotten" when they begin anew.
_SAVE = """(before, ...values) => {
  if (window.atelierDraft === "forgotten") return {};
  if (window.atelierDraft !== "edited") return before;
  const names = %s;
  const written = Object.fromEntries(names.map((name, index) => [name, values[index]]));
  return { address: location.search, values: written };
}"""


NOTHING: dict[str, Any] = {}  # a state that is set to None stays as it was
FORGET = "() => { window.atelierDraft = 'forgotten'; return []; }"


class Draft:
    """The draft of a form whose components are known by name."""

    def __init__(self, components: Mapping[str, Any]) -> None:
        self.state = gr.BrowserState(None, storage_key=_KEY, secret=_SECRET)
        names = list(components)
        gr.on(
            [component.change for component in components.values()],
            None,
            [self.state, *components.values()],
            self.state,
            js=_SAVE % json.dumps(names),
            api_visibility="private",
        )


def restored(draft: Any, query: Mapping[str, str]) -> dict[str, Any] | None:
    """The values of a draft by name, if it belongs to this address. A draft comes from the browser:
    nothing is certain about it but what is checked here."""
    if not isinstance(draft, dict) or not isinstance(draft.get("values"), dict):
        return None
    written_at = dict(parse_qsl(str(draft.get("address", "")).lstrip("?")))
    if query and dict(query) != written_at:
        return None
    values = draft["values"]
    plain = all(isinstance(value, str | bool | int | float | None) for value in values.values())
    return dict(values) if plain else None
