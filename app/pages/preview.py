"""Preview: an adapter at a strength, a strip over strengths, and further adapters mixed in."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from app import media, parts
from app.faults import guarded
from app.library import Entry
from app.pages.frame import AT_ONCE, LATEST, page
from app.workshop import Workshop
from trainer.errors import AtelierError, SettingsError, UserError
from trainer.fields import flatten
from trainer.model.bases import EMBEDDED
from trainer.preview.request import Loading, Progress, Render, Rendered, Strength
from trainer.settings import Samples, Settings, parse

FURTHER = 3
STRIP = (0.0, 0.25, 0.5, 0.75, 1.0)
_EASEL = '<div class="easel blank"></div>'
_DRAWING: dict[str, Any] = {
    "concurrency_id": "preview",
    "concurrency_limit": 1,
    "show_progress": "hidden",
    "trigger_mode": "always_last",
}


class PreviewPage:
    """The page at `/preview`; `?adapter=REF` opens one."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop

    def draw(self, demo: Any) -> None:
        with page(self.workshop, demo, "Preview"):
            gr.HTML(parts.title("Preview", "Move the slider; what was drawn before comes back at "
                                "once."))  # fmt: skip
            self.nothing = gr.HTML("", elem_id="nothing")
            with gr.Row(elem_classes="bench", visible=False) as self.bench:
                with gr.Column(scale=2, min_width=320, elem_classes="sheet"):
                    self._draw_controls()
                with gr.Column(scale=3, min_width=320):
                    self._draw_images()
        self._connect(demo)

    def _draw_controls(self) -> None:
        self.adapter = gr.Dropdown([], label="Adapter", elem_id="adapter")
        self.strength = _slider("Strength", "strength", 1.0)
        self.prompt = gr.Textbox(label="Prompt", lines=2, elem_id="prompt")
        self.further: list[tuple[Any, Any, Any]] = []
        for number in range(FURTHER):
            with gr.Column(visible=False, elem_classes="further") as row:
                adapter = gr.Dropdown([], label=f"Adapter {number + 2}",
                                      elem_id=f"adapter-{number + 2}")  # fmt: skip
                weight = _slider(f"Strength {number + 2}", f"strength-{number + 2}", 0.5)
            self.further.append((row, adapter, weight))
        self.more = gr.Button("Add another adapter", size="sm", elem_id="more")
        self.rows = gr.Number(0, precision=0, visible=False)
        with gr.Accordion("How it is drawn", open=False, elem_id="drawing"):
            self.base = gr.Dropdown([], label="Base", elem_id="base")
            self.negative = gr.Textbox(label="Negative prompt", elem_id="negative", max_lines=2)
            with gr.Row(elem_classes="fields"):
                self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=100,
                                      maximum=2**32 - 1, elem_id="seed")  # fmt: skip
                self.steps = gr.Number(20, label="Steps", precision=0, minimum=1, maximum=200,
                                       min_width=100, elem_id="steps")  # fmt: skip
                self.guidance = gr.Number(7, label="Guidance", minimum=1, maximum=50,
                                          min_width=100, elem_id="guidance")  # fmt: skip

    def _draw_images(self) -> None:
        self.image = gr.HTML(_EASEL, elem_id="image")
        self.progress = gr.HTML("", elem_id="progress")
        with gr.Row(elem_classes="actions"):
            self.draw_it = gr.Button("Draw", variant="primary", elem_id="main-action")
            self.draw_strip = gr.Button("Strip over strengths", elem_id="draw-strip")
        self.strip = gr.HTML("", elem_id="strip")
        self.about = gr.HTML("", elem_id="about")

    def _connect(self, demo: Any) -> None:
        further = [part for _, adapter, weight in self.further for part in (adapter, weight)]
        asked = [
            self.adapter, self.strength, self.prompt, self.base, self.negative, self.seed,
            self.steps, self.guidance, *further,
        ]  # fmt: skip
        drawn_from = [self.prompt, self.base, self.negative, self.steps, self.guidance, self.about]
        choices = [self.adapter, *(adapter for _, adapter, _ in self.further)]
        canvas, strip = [self.image, self.progress], [self.strip, self.progress]
        opened = demo.load(
            self.open, None, [self.nothing, self.bench, *choices, *drawn_from], **AT_ONCE
        )
        entered = self.adapter.input(self.enter, self.adapter, drawn_from, **LATEST)
        for ready in (opened, entered):
            ready.then(self.draw_if_near, asked, canvas, api_visibility="private", **_DRAWING)
        changes = [self.strength.change, *(weight.change for _, _, weight in self.further)]
        gr.on(changes, self.draw_one, asked, canvas, api_visibility="private", **_DRAWING)
        added = [adapter.input for _, adapter, _ in self.further]
        gr.on(
            [self.draw_it.click, self.prompt.submit, *added],
            self.draw_one, asked, canvas, api_name="draw", **_DRAWING,
        )  # fmt: skip
        self.draw_strip.click(self.draw_many, asked, strip, api_name="strip", **_DRAWING)
        self.more.click(
            _one_more, self.rows, [self.rows, self.more, *(row for row, _, _ in self.further)],
            **AT_ONCE,
        )  # fmt: skip

    @guarded
    def open(self, request: gr.Request) -> list[Any]:
        """The adapters to choose from, with the one that the address names."""
        entries = [*self.workshop.library.entries(), *self.workshop.library.checkpoints()]
        if not entries:
            sorry = parts.empty("Nothing to preview yet: an adapter is made by training.",
                                "/train", "Train one")  # fmt: skip
            return [str(sorry), gr.update(visible=False), *[gr.skip()] * (FURTHER + 7)]
        choices = [(entry.title, entry.ref) for entry in entries]
        refs = [ref for _, ref in choices]
        asked = request.query_params.get("adapter", "")
        ref = asked if asked in refs else refs[0]
        first = gr.update(choices=choices, value=ref)
        others = [gr.update(choices=[("none", ""), *choices], value="")] * FURTHER
        return ["", gr.update(visible=True), first, *others, *self._drawn_from(ref)]

    @guarded
    def enter(self, ref: str) -> list[Any]:
        """Prompt, base and drawing settings that suit an adapter."""
        return self._drawn_from(ref)

    def _drawn_from(self, ref: str) -> list[Any]:
        entry = self.workshop.library.find(ref)
        settings = self._settings(entry)
        samples = settings.samples if settings else Samples()
        prompt = samples.prompts[0] if samples.prompts else entry.trigger
        choices = self.workshop.bases.choices()
        base = settings.base.model if settings else entry.base
        if base and self.workshop.bases.allows(base) and base not in [b for _, b in choices]:
            choices.append((base, base))
        known = base if base in [reference for _, reference in choices] else EMBEDDED
        return [
            prompt,
            gr.update(choices=choices, value=known),
            samples.negative_prompt,
            samples.steps,
            samples.guidance,
            str(_about(entry)),
        ]

    def _settings(self, entry: Entry) -> Settings | None:
        """The settings that an adapter was trained with, if they are known."""
        try:
            if entry.run is not None:
                return self.workshop.jobs.run(entry.run).settings()
            return parse(_tree(entry.header.settings)) if entry.header.settings else None
        except (SettingsError, ValueError, RecursionError):
            return None  # of a version that this program does not know

    @guarded
    def draw_one(self, *asked: Any) -> Iterator[tuple[Any, Any]]:
        """The image at the slider's strength."""
        yield from self._draw(self._request(asked, (1.0,)), _picture)

    @guarded
    def draw_if_near(self, *asked: Any) -> Iterator[tuple[Any, Any]]:
        """The same, unless the base might first have to be downloaded."""
        if asked[3] == EMBEDDED or Path(str(asked[3])).is_absolute():
            yield from self._draw(self._request(asked, (1.0,)), _picture)
        else:
            note = "Press Draw to see it; the base may have to be downloaded first."
            yield str(parts.empty(note)), ""

    @guarded
    def draw_many(self, *asked: Any) -> Iterator[tuple[Any, Any]]:
        """A labelled strip: the same image with everything from 0 to full strength."""
        yield from self._draw(self._request((asked[0], 1.0, *asked[2:]), STRIP), _labelled)

    def _draw(
        self, wanted: Render, show: Callable[[Render, Rendered], Markup]
    ) -> Iterator[tuple[Any, Any]]:
        """Pairs of the image's place and the progress below it; the image stays until the next."""
        try:
            for answer in self.workshop.previews.draw(wanted):
                match answer:
                    case Loading():
                        yield gr.skip(), str(_waiting("Loading the base…", 0))
                    case Progress():
                        yield gr.skip(), str(_waiting("Drawing…", answer.done / answer.total))
                    case Rendered():
                        yield str(show(wanted, answer)), ""
        except AtelierError as error:
            yield gr.skip(), str(parts.notices([str(error)], tone="bad"))

    def _request(self, asked: Sequence[Any], strip: tuple[float, ...]) -> Render:
        ref, strength, prompt, base, negative, seed, steps, guidance, *further = asked
        if not ref:
            raise UserError("Choose an adapter first.")
        weighted = [(ref, strength), *zip(further[::2], further[1::2], strict=True)]
        chosen = [(self.workshop.library.find(ref), weight) for ref, weight in weighted if ref]
        return Render(
            id=secrets.token_hex(8),
            base=self.workshop.bases.check(str(base)),
            adapters=tuple(Strength(file=entry.file, unet=weight) for entry, weight in chosen),
            prompt=prompt or "",
            negative_prompt=negative or "",
            strip=strip,
            seed=int(seed or 0),
            steps=int(steps or 20),
            guidance=float(guidance or 7),
            folder=self.workshop.previews.folder,
        )


def _slider(label: str, id: str, value: float) -> Any:
    return gr.Slider(-1, 2, value=value, step=0.05, label=label, elem_id=id, interactive=True)


def _one_more(rows: int) -> list[Any]:
    """One further adapter's row comes into view."""
    rows = min(rows + 1, FURTHER)
    return [rows, gr.update(visible=rows < FURTHER)] + [
        gr.update(visible=number < rows) for number in range(FURTHER)
    ]


def _tree(text: str) -> dict[str, Any]:
    tree = json.loads(text)
    if not isinstance(tree, dict):
        raise ValueError("settings are a JSON object")
    flatten(tree)
    return tree


def _waiting(word: str, share: float) -> Markup:
    return Markup(
        '<div class="waiting"><span>{}</span><span class="meter busy"><i style="width:{}%"></i>'
        "</span></div>"
    ).format(word, f"{100 * share:.0f}")


def _picture(wanted: Render, rendered: Rendered) -> Markup:
    mixture = " + ".join(f"{strength.unet:g}" for strength in wanted.adapters)
    return Markup(
        '<figure class="easel"><img src="{}" alt="{}" data-strength="{}"><figcaption>strength {} '
        "· seed {}</figcaption></figure>"
    ).format(media.drawing(rendered.files[0]), wanted.prompt, mixture, mixture, wanted.seed)


def _labelled(wanted: Render, rendered: Rendered) -> Markup:
    images = Markup("").join(
        Markup('<figure><img src="{}" alt="{}"><figcaption>{}</figcaption></figure>').format(
            media.drawing(file), f"{wanted.prompt} at {strength:g}", f"{strength:g}"
        )
        for strength, file in zip(wanted.strip, rendered.files, strict=True)
    )
    sheet = media.drawing(rendered.files[0].with_name("sheet.png"))
    return Markup(
        '<div class="strip">{}</div><p><a class="button small" href="{}" download>Download the '
        "strip</a></p>"
    ).format(images, sheet)


def _about(entry: Entry) -> Markup:
    facts = [
        ("Trigger", entry.trigger),
        ("Trained on", entry.base or ""),
        ("Rank", str(entry.rank or "")),
        ("Size", parts.size(entry.size)),
    ]
    rows = Markup("").join(
        Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(name, value)
        for name, value in facts
        if value
    )
    return Markup(
        '<dl class="facts-list">{}</dl><p><a class="button small" href="{}" download>Download the '
        "adapter</a></p>"
    ).format(rows, media.download(entry.ref))
