"""Preview: adapters at their strengths, alone or mixed, a strip, off against on, and the mix kept
as one file."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup
from pydantic import ValidationError

from app import media, parts
from app.faults import guarded
from app.library import Entry
from app.pages import pictures
from app.pages.frame import AT_ONCE, LATEST, TELLING, page
from app.pages.mix import Mix, several
from app.pages.operations_panel import OperationsPanel
from app.pages.recipe import Recipe
from app.workbench import whole
from app.workshop import Workshop
from trainer.errors import AtelierError, SettingsError, UserError
from trainer.fields import flatten, problems_of
from trainer.model.bases import EMBEDDED
from trainer.preview.request import (
    Cancelled,
    Drawing,
    Loading,
    Progress,
    Render,
    Rendered,
    Strength,
)
from trainer.preview.schedule import CONSTANT
from trainer.settings import Samples, Settings
from trainer.settings_file import parse

STRIP = "0, 0.25, 0.5, 0.75, 1"
_REMEMBERED = 24
_DRAWING: dict[str, Any] = {
    "concurrency_id": "preview",
    "concurrency_limit": 1,
    "show_progress": "hidden",
    "trigger_mode": "always_last",
}
_PRESS = """element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-drawing], button[data-key]');
  if (button) trigger('select', { id: button.dataset.drawing, key: button.dataset.key });
});"""
Shown = tuple[Any, Any, Any]


class PreviewPage:
    """The page at `/preview`; `?adapter=REF` opens one, `&with=REF` a second one mixed in."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        self.previews = workshop.previews
        self.mix = Mix(workshop.library, workshop.inputs)
        self.recipe = Recipe(workshop.inputs)
        self.panel = OperationsPanel(workshop.workbench.operations)

    def draw(self, demo: Any) -> None:
        with page(self.workshop, demo, "Preview"):
            gr.HTML(parts.title("Preview", "Move the slider; what was drawn before comes back at "
                                "once."))  # fmt: skip
            self.panel.draw(demo)
            self.nothing = gr.HTML("", elem_id="nothing")
            with gr.Row(elem_classes="bench easel-first", visible=False) as self.bench:
                with gr.Column(scale=2, min_width=300, elem_classes="sheet"):
                    self._draw_controls()
                with gr.Column(scale=3, min_width=300):
                    self._draw_images()
            self.history = gr.HTML("", js_on_load=_PRESS, elem_id="history")
        self._connect(demo)

    def _draw_controls(self) -> None:
        self.mix.draw()
        self.recipe.draw_mixing()
        self.prompt = gr.Textbox(label="Prompt", lines=2, elem_id="prompt")
        self.recipe.draw_seed()
        with gr.Accordion("How it is drawn", open=False, elem_id="drawing"):
            self.recipe.draw()
            self.strip_at = gr.Textbox(STRIP, label="Strengths of the strip", elem_id="strip-at",
                                       info="Of one adapter; of a mix, factors on all its "
                                       "strengths.", max_lines=1, interactive=True)  # fmt: skip
        with gr.Accordion("Save the mix as one file", open=False, elem_id="saving"):
            gr.HTML('<p class="quiet">One adapter that acts as all that are on, at their '
                    "strengths. The exact sum has all their ranks added up; a lower rank makes a "
                    "smaller file, and what that loses is said.</p>")  # fmt: skip
            self.mix_name = gr.Textbox(label="Name", elem_id="mix-name", max_length=80,
                                       max_lines=1, interactive=True)  # fmt: skip
            self.mix_rank = gr.Textbox(
                label="Rank", placeholder="empty for the exact sum", elem_id="mix-rank",
                max_lines=1, interactive=True,
            )  # fmt: skip
            self.save_mix = gr.Button("Save the mix", elem_id="save-mix")

    def _draw_images(self) -> None:
        self.image = gr.HTML(pictures.BLANK, elem_id="image")
        self.progress = gr.HTML("", js_on_load=_PRESS, elem_id="progress")
        with gr.Row(elem_classes="actions"):
            self.draw_it = gr.Button("Draw", variant="primary", elem_id="main-action")
            self.draw_pair = gr.Button("Off against on", elem_id="draw-pair")
            self.draw_strip = gr.Button("Strip over strengths", elem_id="draw-strip")
        self.strip = gr.HTML("", elem_id="strip")
        self.about = gr.HTML("", elem_id="about")
        self.drawing = gr.Textbox("", visible=False)

    def _connect(self, demo: Any) -> None:
        recipe, mix = self.recipe, self.mix
        asked = [*mix.inputs, self.prompt, *recipe.inputs]
        suited = [self.prompt, *recipe.inputs, self.about]
        canvas = [self.image, self.progress, self.drawing]
        strip = [self.strip, self.progress, self.drawing]
        private: dict[str, Any] = {"api_visibility": "private", **_DRAWING}
        opened = demo.load(
            self.open, None, [self.nothing, self.bench, *mix.outputs, *suited], **AT_ONCE
        )
        entered = mix.rows[0].adapter.input(self.enter, mix.rows[0].adapter, suited, **LATEST)
        for then in (opened.then, entered.then, *mix.removed):
            self._remembered(then(self.draw_if_near, asked, canvas, **private))
        mixing = recipe.components["mixing"]
        mix.shown.change(several, mix.shown, mixing, **LATEST)
        changes = [*mix.changes, mixing.input]
        gr.on(changes, self.give_up, self.drawing, None, **AT_ONCE)
        self._remembered(gr.on(changes, self.draw_if_near, asked, canvas, **private))
        for press, how, inputs, outputs, name in (
            ([self.draw_it.click, self.prompt.submit], self.draw_one, asked, canvas, "draw"),
            ([self.draw_pair.click], self.draw_compared, asked, canvas, "compare"),
            ([self.draw_strip.click], self.draw_many, [self.strip_at, *asked], strip, "strip"),
        ):
            fresh = gr.on(press, _next_seed, [recipe.fresh, recipe.components["seed"]],
                          recipe.components["seed"], **AT_ONCE)  # fmt: skip
            self._remembered(fresh.then(how, inputs, outputs, api_name=name, **_DRAWING))
        self.progress.select(self.cancel, None, None, **AT_ONCE)
        self.history.select(
            self.again, None, [self.image, self.strip, *mix.outputs, self.prompt, *recipe.inputs],
            **TELLING,
        )  # fmt: skip
        demo.load(self.show_history, self.history, self.history, **AT_ONCE)
        self.save_mix.click(
            self.keep, [self.mix_name, self.mix_rank, *mix.inputs], None, **TELLING
        )  # fmt: skip

    def _remembered(self, event: Any) -> None:
        """The drawings below are shown anew after `event`."""
        event.then(self.show_history, self.history, self.history, **AT_ONCE)

    @guarded
    def open(self, request: gr.Request) -> list[Any]:
        """The adapters to choose from, with those that the address names."""
        library = self.workshop.library
        entries = [*library.entries(), *library.checkpoints()]
        if not entries:
            sorry = parts.empty("Nothing to preview yet: an adapter is made by training.",
                                "/train", "Train one")  # fmt: skip
            untouched = len(self.mix.outputs) + len(self.recipe.inputs) + 2
            return [str(sorry), gr.update(visible=False), *[gr.skip()] * untouched]
        refs = [entry.ref for entry in entries]
        query = request.query_params
        ref = query.get("adapter", "") if query.get("adapter", "") in refs else refs[0]
        other = query.get("with", "")
        both = other in refs and other != ref
        mix = [(it, Strength(file=Path(), unet=0.7 if both else 1.0))
               for it in ([ref, other] if both else [ref])]  # fmt: skip
        return ["", gr.update(visible=True), *self.mix.show(mix), *self._suited(ref)]

    @guarded
    def enter(self, ref: str) -> list[Any]:
        """Prompt, base and drawing settings that suit an adapter."""
        return self._suited(ref)

    def _suited(self, ref: str) -> list[Any]:
        entry = self.workshop.library.find(ref)
        settings = self._settings(entry)
        samples = settings.samples if settings else Samples()
        prompt = samples.prompts[0] if samples.prompts else entry.trigger
        base, choices = self._base(settings.base.model if settings else entry.base)
        drawing = Drawing(
            base=base,
            prompt=prompt,
            negative_prompt=samples.negative_prompt,
            steps=samples.steps,
            guidance=samples.guidance,
        )
        return [prompt, *self._shown(drawing, choices), str(_about(entry))]

    def _base(self, wanted: str | None) -> tuple[str, list[tuple[str, str]]]:
        """The base to draw on, if a page may name it, and those to choose from."""
        choices = self.workshop.bases.choices()
        if wanted and self.workshop.bases.allows(wanted) and wanted not in [b for _, b in choices]:
            choices.append((wanted, wanted))
        known = wanted if wanted in [reference for _, reference in choices] else EMBEDDED
        return str(known), choices

    def _shown(self, drawing: Drawing, choices: list[tuple[str, str]]) -> list[Any]:
        updates = dict(zip(self.recipe.components, self.recipe.show(drawing), strict=True))
        return list({**updates, "base": {**updates["base"], "choices": choices}}.values())

    def _settings(self, entry: Entry) -> Settings | None:
        """The settings that an adapter was trained with, if they are known."""
        try:
            if entry.run is not None:
                return self.workshop.jobs.run(entry.run).settings()
            return parse(_tree(entry.header.settings)) if entry.header.settings else None
        except (SettingsError, ValueError, RecursionError):
            return None  # of a version that this program does not know

    @guarded
    def draw_one(self, *asked: Any) -> Iterator[Shown]:
        """The picture with the adapters at their strengths."""
        yield from self._draw(self._request(asked, pictures.ALONE))

    @guarded
    def draw_if_near(self, *asked: Any) -> Iterator[Shown]:
        """The same, unless the base might have to be downloaded: that waits for a press of Draw."""
        wanted = self._request(asked, pictures.ALONE)
        if wanted.base == EMBEDDED or Path(wanted.base).is_absolute():
            yield from self._draw(wanted)
        else:
            note = "Press Draw to see it; the base may have to be downloaded first."
            yield str(parts.empty(note)), "", ""

    @guarded
    def draw_compared(self, *asked: Any) -> Iterator[Shown]:
        """The same picture without and with the adapters."""
        yield from self._draw(self._request(asked, pictures.OFF_AND_ON))

    @guarded
    def draw_many(self, strengths: str, *asked: Any) -> Iterator[Shown]:
        """A labelled strip: one adapter at each strength, or a mix with each factor."""
        wanted = self._request(asked, _factors(strengths))
        if len(wanted.adapters) == 1:
            alone = wanted.adapters[0].model_copy(update={"unet": 1.0})
            wanted = wanted.model_copy(update={"adapters": (alone,)})
        yield from self._draw(wanted)

    def _draw(self, wanted: Render) -> Iterator[Shown]:
        """The picture, the progress below it and the drawing's id; the last picture stays until
        the next."""
        yield gr.skip(), str(pictures.waiting("Waiting…", 0, wanted.id)), wanted.id
        try:
            for answer in self.previews.draw(wanted):
                match answer:
                    case Loading():
                        told = pictures.waiting("Loading the base…", 0, wanted.id)
                        yield gr.skip(), str(told), gr.skip()
                    case Progress():
                        share = answer.done / answer.total
                        told = pictures.waiting("Drawing…", share, wanted.id)
                        yield gr.skip(), str(told), gr.skip()
                    case Cancelled():
                        yield gr.skip(), '<p class="quiet">Given up.</p>', ""
                    case Rendered():
                        shown = pictures.picture(wanted, answer.files, self._titles())
                        yield str(shown), "", ""
        except AtelierError as error:
            yield gr.skip(), str(parts.notices([str(error)], tone="bad")), ""

    @guarded
    def cancel(self, event: gr.EventData) -> None:
        """Gives up the drawing whose button was pressed."""
        self.previews.give_up(str(event._data.get("id", "")))

    @guarded
    def give_up(self, id: str) -> None:
        """Gives up what this page draws, because something else is wanted now."""
        self.previews.give_up(id)

    @guarded
    def show_history(self, shown: str) -> Any:
        """The latest drawings; left alone if they are shown, for someone may be pressing one."""
        now = str(pictures.history(self.previews.latest(_REMEMBERED)))
        return gr.skip() if now == shown else now

    @guarded
    def again(self, event: gr.EventData) -> list[Any]:
        """A drawing of before with its settings, as far as its adapters are still there."""
        drawing, files = self.previews.drawn(str(event._data.get("key", "")))
        refs = {it.file: it.ref for it in self._entries()}
        mix = [(refs[it.file], it) for it in drawing.adapters if it.file in refs]
        if len(mix) < len(drawing.adapters):
            gr.Warning("An adapter of this picture is not in the library any more.")
        _, choices = self._base(drawing.base)
        shown = str(pictures.picture(drawing, files, self._titles()))
        one = drawing.strip in (pictures.ALONE, pictures.OFF_AND_ON)
        return [
            shown if one else gr.skip(),
            gr.skip() if one else shown,
            *self.mix.show(mix),
            drawing.prompt,
            *self._shown(drawing, choices),
        ]

    @guarded
    def keep(self, name: str, rank: str, *values: Any) -> None:
        """Queues the mix to be written as one file."""
        chosen = self.mix.read(values)
        self.workshop.workbench.compose([it.ingredient for it in chosen], name, whole(rank))
        if any(it.schedule != CONSTANT or it.mask for it in chosen):
            gr.Warning("A file acts at all steps and everywhere: when and where an adapter acts "
                       "is not saved.")  # fmt: skip

    def _entries(self) -> list[Entry]:
        return [*self.workshop.library.entries(), *self.workshop.library.checkpoints()]

    def _titles(self) -> dict[Path, str]:
        return {entry.file: entry.title for entry in self._entries()}

    def _request(self, asked: Sequence[Any], strip: tuple[float, ...]) -> Render:
        count = len(self.mix.inputs)
        chosen = self.mix.read(asked[:count])
        fields = self.recipe.read(asked[count + 1 :])
        fields["base"] = self.workshop.bases.check(str(fields.get("base", EMBEDDED)))
        try:
            return Render(
                id=secrets.token_hex(8),
                adapters=tuple(it.strength() for it in chosen),
                prompt=asked[count] or "",
                strip=strip,
                folder=self.previews.folder,
                **fields,
            )
        except ValidationError as error:
            raise SettingsError(problems_of(error, Render)) from None


def _next_seed(fresh: bool, seed: float | None) -> Any:
    """The seed as it is, or one by chance if each drawing is to have its own."""
    return secrets.randbelow(2**32) if fresh or seed is None else gr.skip()


def _factors(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.replace(";", ",").split(",") if part.strip())
    except ValueError:
        raise UserError(f"{text} is not a list of strengths.", f"Write it like {STRIP}.") from None


def _tree(text: str) -> dict[str, Any]:
    tree = json.loads(text)
    if not isinstance(tree, dict):
        raise ValueError("settings are a JSON object")
    flatten(tree)
    return tree


def _about(entry: Entry) -> Markup:
    facts = [
        ("Trigger", entry.trigger),
        ("Trained on", entry.base or ""),
        ("Rank", str(entry.rank or "")),
        ("Size", parts.size(entry.size)),
    ]
    return Markup(
        '{}<p><a class="button small" href="{}" download>Download the adapter</a></p>'
    ).format(parts.facts_list(facts), media.download(entry.ref))
