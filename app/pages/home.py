"""Home: the way in for a newcomer, and the latest runs for everyone else."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from app import parts, samples
from app.faults import guarded
from app.overview import overview
from app.pages.frame import AT_ONCE, GO, page
from app.workshop import Workshop

_RUNS_SHOWN = 8


@dataclass(frozen=True)
class HomePage:
    """The page at `/`."""

    workshop: Workshop

    def draw(self, demo: Any) -> None:
        with page(self.workshop, demo, "Home"):
            gr.HTML(_WELCOME)
            address = gr.Textbox("", visible=False)
            runs = gr.HTML("", elem_id="runs")
            with gr.Column(elem_classes="first-run"):
                gr.HTML(_STEPS)
                with gr.Row(elem_classes="sample-row"):
                    for sample in samples.shipped():
                        self._sample(sample, address)
            gr.HTML(_machine(self.workshop.data))
        demo.load(self.show_runs, None, runs, **AT_ONCE)
        address.change(None, address, None, js=GO)

    def _sample(self, sample: samples.Sample, address: Any) -> None:
        with gr.Column(elem_classes="sample", min_width=240):
            gr.HTML(_sample_card(sample))
            button = gr.Button(
                f"Train on {sample.title}", variant="primary", elem_id=f"try-{sample.name}"
            )

        @guarded
        def take() -> str:
            return samples.take(sample, self.workshop.datasets)

        button.click(take, None, address, show_progress="hidden", api_visibility="private")

    @guarded
    def show_runs(self) -> str:
        """The latest runs as cards."""
        ids = self.workshop.jobs.ids()[:_RUNS_SHOWN]
        if not ids:
            return ""
        cards = Markup("").join(parts.run_card(overview(self.workshop, id)) for id in ids)
        return str(
            Markup('<section><h2>Latest runs</h2><div class="run-list">{}</div></section>').format(
                cards
            )
        )


def _sample_card(sample: samples.Sample) -> Markup:
    images = Markup("").join(
        Markup('<img src="{}" alt="{}" loading="lazy">').format(address, caption)
        for address, caption in sample.images()
    )
    return Markup(
        '<div class="contact-sheet">{}</div><h3>{}</h3><p class="quiet">{}</p>'
    ).format(images, sample.title.capitalize(), sample.lead)  # fmt: skip


def _machine(data: Path) -> Markup:
    free = shutil.disk_usage(data).free / 2**30
    return Markup(
        '<p class="machine">Everything stays on this machine, in <code>{}</code> · {} GB free</p>'
    ).format(data, f"{free:,.0f}".replace(",", " "))


_WELCOME = Markup(
    '<div class="hero"><h1>Teach Stable Diffusion something of yours</h1>'
    "<p>A dozen captioned images in, one small adapter file out — and a slider to dial how "
    "strongly it acts.</p>"
    '<div class="actions"><a class="button primary" href="/train">Train an adapter</a>'
    '<a class="button" href="/preview">Try one at different strengths</a></div></div>'
)
_STEPS = Markup(
    "<h2>New here? Two minutes, no downloads</h2>"
    '<ol class="steps"><li><b>Take a sample dataset.</b> Twelve captioned images, drawn for this.'
    "</li><li><b>Train.</b> On the small base that ships with LoRA Atelier.</li>"
    "<li><b>Move the slider.</b> See it come in from 0 to 1.</li></ol>"
)
