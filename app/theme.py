"""The look: Gradio's variables bound to the colours of `style.css`, light and dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

STYLE = Path(__file__).with_name("style.css")
SCRIPT = Path(__file__).with_name("script.js")

_COLOURS = {
    "body_background_fill": "var(--paper)",
    "body_text_color": "var(--ink)",
    "body_text_color_subdued": "var(--muted)",
    "background_fill_primary": "var(--card)",
    "background_fill_secondary": "var(--paper)",
    "border_color_primary": "var(--line)",
    "border_color_accent": "var(--pigment)",
    "color_accent": "var(--pigment)",
    "color_accent_soft": "var(--tint)",
    "link_text_color": "var(--pigment)",
    "link_text_color_hover": "var(--pigment-deep)",
    "link_text_color_visited": "var(--pigment)",
    "block_background_fill": "transparent",
    "block_label_background_fill": "transparent",
    "block_label_text_color": "var(--muted)",
    "block_title_text_color": "var(--ink)",
    "block_info_text_color": "var(--muted)",
    "panel_background_fill": "transparent",
    "input_background_fill": "var(--card)",
    "input_border_color": "var(--line-strong)",
    "input_border_color_focus": "var(--pigment)",
    "input_placeholder_color": "var(--faint)",
    "input_shadow_focus": "0 0 0 3px var(--halo)",
    "checkbox_background_color": "var(--card)",
    "checkbox_background_color_selected": "var(--pigment)",
    "checkbox_border_color": "var(--line-strong)",
    "checkbox_border_color_selected": "var(--pigment)",
    "checkbox_border_color_focus": "var(--pigment)",
    "checkbox_label_background_fill": "var(--card)",
    "checkbox_label_background_fill_hover": "var(--tint)",
    "checkbox_label_background_fill_selected": "var(--tint)",
    "checkbox_label_border_color": "var(--line-strong)",
    "checkbox_label_border_color_selected": "var(--pigment)",
    "checkbox_label_text_color": "var(--ink)",
    "checkbox_label_text_color_selected": "var(--pigment-deep)",
    "button_primary_background_fill": "var(--pigment)",
    "button_primary_background_fill_hover": "var(--pigment-deep)",
    "button_primary_text_color": "var(--on-pigment)",
    "button_primary_border_color": "var(--pigment)",
    "button_secondary_background_fill": "var(--card)",
    "button_secondary_background_fill_hover": "var(--tint)",
    "button_secondary_text_color": "var(--ink)",
    "button_secondary_border_color": "var(--line-strong)",
    "button_cancel_background_fill": "var(--card)",
    "button_cancel_background_fill_hover": "var(--alarm-tint)",
    "button_cancel_text_color": "var(--alarm)",
    "button_cancel_border_color": "var(--alarm)",
    "slider_color": "var(--pigment)",
    "error_background_fill": "var(--alarm-tint)",
    "error_border_color": "var(--alarm)",
    "error_text_color": "var(--alarm)",
    "loader_color": "var(--pigment)",
    "stat_background_fill": "var(--tint)",
}
_SHAPES = {
    "block_border_width": "0px",
    "block_shadow": "none",
    "block_padding": "0px",
    "block_label_border_width": "0px",
    "block_title_text_weight": "600",
    "block_title_text_size": "14px",
    "block_info_text_size": "12.5px",
    "input_border_width": "1px",
    "input_padding": "9px 12px",
    "input_radius": "8px",
    "button_border_width": "1px",
    "button_large_radius": "8px",
    "button_medium_radius": "8px",
    "button_small_radius": "7px",
    "button_large_text_weight": "600",
    "button_medium_text_weight": "600",
    "checkbox_label_border_width": "1px",
    "checkbox_label_padding": "8px 14px",
    "layout_gap": "20px",
    "form_gap_width": "16px",
}


def theme() -> Any:
    """The Gradio theme; `style.css` says what its two fonts are."""
    look = gr.themes.Base(
        radius_size=gr.themes.sizes.radius_md,
        font=("Atelier", "system-ui", "sans-serif"),
        font_mono=("Atelier Mono", "ui-monospace", "monospace"),
    )
    known = set(vars(look))
    both = {f"{name}_dark": value for name, value in _COLOURS.items() if f"{name}_dark" in known}
    look.set(**_COLOURS, **both, **_SHAPES)
    return look
