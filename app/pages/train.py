"""Train: a short form in front of all settings, and the view of one run (see `run_view`)."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import gradio as gr
from markupsafe import Markup

from app import check, parts
from app.datasets import Dataset
from app.faults import guarded
from app.form import LEAVES, PATHS, Form
from app.overview import overview
from app.pages.frame import AT_ONCE, GO, LATEST, page
from app.pages.run_view import RunView
from app.workshop import Workshop
from trainer.data.findings import Finding
from trainer.errors import AtelierError, DatasetError, SettingsError
from trainer.presets import PRESETS, Family, Goal
from trainer.run import Run
from trainer.settings import Settings

# The settings that the check panel tells of.
CHECKED_AGAIN = ("training.steps", "samples.prompts", "training.batch_size", "dataset.trigger")
SIMPLE = ("dataset.trigger", "training.steps", "samples.prompts", "output.name")
# What a person says about this one adapter; a preset leaves it alone.
PERSONAL = ("dataset.trigger", "samples.prompts", "output.name")
GOALS: list[tuple[str, Goal]] = [
    ("A character or person", "character"),
    ("An object", "object"),
    ("A style", "style"),
]
FAMILIES: list[tuple[str, Family]] = [
    ("Embedded, tiny", "embedded"),
    ("SD 1.5", "sd15"),
    ("SDXL", "sdxl"),
]
_RUNS_SHOWN = 6


class TrainPage:
    """The page at `/train`: `?run=ID` shows a run, `?from=ID` fills the form with its settings,
    `?dataset=NAME&preset=NAME` fills it for a start."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        self.form = Form()
        self.run_view = RunView(workshop)

    def draw(self, demo: Any) -> None:
        with page(self.workshop, demo, "Train"):
            self.waiting = gr.HTML('<p class="quiet">Opening…</p>')
            with gr.Column(visible=False) as self.new:
                self._draw_new()
            with gr.Column(visible=False) as run:
                self.run_view.draw(demo)
        self._connect(demo)
        demo.load(self.choose, None, [self.waiting, self.new, run], **AT_ONCE)

    def _draw_new(self) -> None:
        gr.HTML(parts.title("Train an adapter", "Five answers are enough; the rest is under "
                            "Advanced."))  # fmt: skip
        with gr.Row(elem_classes="bench"):
            with gr.Column(scale=3, min_width=320):
                self._draw_answers()
            with gr.Column(scale=2, min_width=280, elem_classes="sheet check"):
                gr.HTML("<h2>Check</h2>")
                self.checked = gr.HTML("", elem_id="check")
                self.findings = gr.HTML("", elem_id="findings")
                self.start = gr.Button("Start training", variant="primary", elem_id="main-action")
                self.problems = gr.HTML("", elem_id="problems")
        self.address = gr.Textbox("", visible=False)
        self.recent = gr.HTML("", elem_id="recent")

    def _draw_answers(self) -> None:
        self.dataset = gr.Dropdown([], label="Dataset", elem_id="dataset",
                                   info="The captioned images to learn from.")  # fmt: skip
        self.goal = gr.Radio(GOALS, value="character", label="What is it?", elem_id="goal")
        self.family = gr.Radio(
            FAMILIES, value="embedded", label="On which base?", elem_id="family",
            info="The embedded base needs no download and trains in a minute or two.",
        )  # fmt: skip
        with gr.Row(elem_classes="fields"):
            self.form.draw("dataset.trigger", label="Trigger word", min_width=160)
            self.form.draw("training.steps", min_width=120)
            self.form.draw("output.name", min_width=160)
        self.form.draw("samples.prompts", label="Sample prompts")
        with gr.Accordion("Advanced", open=False, elem_id="advanced") as self.advanced:
            self.form.draw(
                "base.model",
                info=f"{LEAVES['base.model'].help} Folders and files are looked for in "
                f"{self.workshop.bases.folder.name}/ of the data directory.",
            )
            self.start_from = gr.Dropdown(
                [("nothing", "")], value="", label="Start from an adapter", elem_id="start-from",
                info=LEAVES["adapter.start_from"].help,
            )  # fmt: skip
            self.form.draw_sections(n for n in LEAVES if n not in {*SIMPLE, *PATHS, "base.model"})

    def _connect(self, demo: Any) -> None:
        everything = {self.dataset, self.start_from, *self.form.outputs}
        personal = [self.form.components[name] for name in PERSONAL]
        filled = demo.load(
            self.fill, None,
            [self.dataset, self.start_from, self.goal, self.family, *self.form.outputs], **AT_ONCE,
        )  # fmt: skip
        preset = gr.on(
            [self.goal.input, self.family.input], self.use_preset, [self.goal, self.family],
            self.form.outputs, **LATEST,
        )  # fmt: skip
        chosen = self.dataset.input(self.suggest, [self.dataset, *personal], personal, **LATEST)
        for changed in (filled, preset, chosen):
            self._checked(changed.then, everything)
        for name in CHECKED_AGAIN:
            self._checked(self.form.components[name].blur, everything)
        self.start.click(
            self.begin,
            everything,
            [self.address, self.problems, self.advanced, *self.form.outputs],
            api_visibility="private",
        )
        self.address.change(None, self.address, None, js=GO)
        demo.load(self.show_recent, None, self.recent, **AT_ONCE)

    def _checked(self, when: Callable[..., Any], everything: set[Any]) -> None:
        """After `when`, the counts are shown at once, and what the images show when it is known."""
        when(self.look, everything, self.checked, **AT_ONCE).then(
            self.examine, everything, self.findings, **AT_ONCE
        )

    @guarded
    def choose(self, request: gr.Request) -> tuple[Any, Any, Any]:
        """Shows the form, or the run that the address names."""
        run = request.query_params.get("run", "")
        if run and run not in self.workshop.jobs.ids():
            sorry = parts.empty("There is no such run; it may have been deleted.", "/train",
                                "Start another")  # fmt: skip
            return str(sorry), gr.update(visible=False), gr.update(visible=False)
        return "", gr.update(visible=not run), gr.update(visible=bool(run))

    @guarded
    def fill(self, request: gr.Request) -> list[Any]:
        """The form as the address wants it: after another run, or with a dataset and a preset."""
        query = request.query_params
        names = self.workshop.datasets.names()
        if query.get("from", "") in self.workshop.jobs.ids():
            return self._after(query["from"], names)
        preset = PRESETS.get(query.get("preset", ""), PRESETS["embedded-character"])
        asked = query.get("dataset", "")
        name = asked if asked in names else (names[0] if len(names) == 1 else None)
        settings = _with_suggestions(preset.settings(), self._dataset(name))
        shown = self.form.show(settings)
        dataset = gr.update(choices=names, value=name)
        return [dataset, self._starts(), preset.goal, preset.family, *shown]

    def _starts(self) -> Any:
        entries = self.workshop.library.entries()
        return gr.update(choices=[("nothing", ""), *((it.title, it.ref) for it in entries)])

    def _after(self, id: str, names: list[str]) -> list[Any]:
        settings = self.workshop.jobs.run(id).settings()
        folder = settings.dataset.folder.name if settings.dataset.folder else ""
        dataset = gr.update(choices=names, value=folder if folder in names else None)
        return [dataset, self._starts(), gr.skip(), gr.skip(), *self.form.show(settings)]

    @guarded
    def use_preset(self, goal: Goal, family: Family) -> list[Any]:
        """The values of a preset, over all that is not about this one adapter."""
        return self.form.show(PRESETS[f"{family}-{goal}"].settings(), keep=PERSONAL)

    @guarded
    def suggest(self, name: str | None, trigger: str, prompts: str, output: str) -> list[Any]:
        """Trigger, prompts and name after the dataset, where nothing else has been written."""
        suggested = _with_suggestions(Settings(), self._dataset(name))
        return [
            gr.skip() if trigger else suggested.dataset.trigger or "",
            gr.skip() if prompts else "\n".join(suggested.samples.prompts),
            gr.skip() if output != Settings().output.name else suggested.output.name,
        ]

    @guarded
    def look(self, data: Mapping[Any, Any]) -> str:
        """The check panel for what the page shows."""
        dataset = self._dataset(data[self.dataset])
        if dataset is None:
            if not self.workshop.datasets.names():
                return str(parts.empty("There is no dataset yet.", "/datasets", "Make one"))
            return '<p class="quiet">Choose a dataset.</p>'
        if not dataset.images:
            way = "/datasets?" + urlencode({"dataset": dataset.name})
            return str(parts.empty("This dataset has no images yet.", way, "Add images"))
        try:
            settings = self._settings(data, dataset)
        except SettingsError as error:
            return str(parts.notices([str(problem) for problem in error.problems], tone="bad"))
        rows = Markup("").join(
            Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(name, value)
            for name, value in check.facts(dataset, settings)
        )
        warnings = parts.notices(check.warnings(dataset, settings))
        return str(Markup('<dl class="facts-list">{}</dl>{}').format(rows, warnings))

    @guarded
    def examine(self, data: Mapping[Any, Any]) -> str:
        """What is to be said about the images and captions themselves."""
        dataset = self._dataset(data[self.dataset])
        if dataset is None or not dataset.images:
            return ""
        try:
            settings = self._settings(data, dataset)
        except SettingsError:
            return ""  # said by `look` already
        return str(_findings(_examined(dataset, settings)))

    @guarded
    def begin(self, data: Mapping[Any, Any]) -> list[Any]:
        """Creates the run and queues it; or puts every problem under its box."""
        try:
            id = self._create(data)
        except AtelierError as error:
            problems = error.problems if isinstance(error, SettingsError) else ()
            elsewhere = [str(p) for p in problems if p.name not in self.form.components]
            told = elsewhere if problems else [str(error)]
            told += ["Some settings need another look."] if len(elsewhere) < len(problems) else []
            hidden = any(p.name not in SIMPLE and p.name in LEAVES for p in problems)
            return [
                "",
                str(parts.notices(told, tone="bad")),
                gr.update(open=True) if hidden else gr.skip(),
                *self.form.show_problems(problems),
            ]
        return [f"/train?run={id}", "", gr.skip(), *self.form.show_problems(())]

    def _create(self, data: Mapping[Any, Any]) -> str:
        dataset = self._dataset(data[self.dataset])
        if dataset is None or not dataset.images:
            raise DatasetError("There is nothing to learn from.", "Choose a dataset with images.")
        settings = self._settings(data, dataset)
        self.workshop.bases.check(settings.base.model)
        for finding in _examined(dataset, settings):
            if finding.severity == "error":
                raise DatasetError(finding.message, finding.fix or None)
        id = _new_id(settings.output.name)
        Run(self.workshop.jobs.folder / id).create(settings)
        self.workshop.jobs.submit(id)
        return id

    def _settings(self, data: Mapping[Any, Any], dataset: Dataset) -> Settings:
        further = {"dataset.folder": str(dataset.folder)}
        if ref := data[self.start_from]:
            further["adapter.start_from"] = str(self.workshop.library.find(ref).file)
        return self.form.read(data, further)

    @guarded
    def show_recent(self) -> str:
        """The latest runs, below the form."""
        ids = self.workshop.jobs.ids()[:_RUNS_SHOWN]
        cards = Markup("").join(parts.run_card(overview(self.workshop, id)) for id in ids)
        listed = Markup('<section><h2>Runs</h2><div class="run-list">{}</div></section>')
        return str(listed.format(cards)) if ids else ""

    def _dataset(self, name: str | None) -> Dataset | None:
        if not name or name not in self.workshop.datasets.names():
            return None
        return self.workshop.datasets.read(name)


def _with_suggestions(settings: Settings, dataset: Dataset | None) -> Settings:
    """The settings with trigger, sample prompts and name taken from the dataset."""
    if dataset is None:
        return settings
    trigger = dataset.suggested_trigger() or None
    prompts = dataset.suggested_prompts()
    return settings.model_copy(
        update={
            "dataset": settings.dataset.model_copy(update={"trigger": trigger}),
            "samples": settings.samples.model_copy(update={"prompts": prompts}),
            "output": settings.output.model_copy(update={"name": trigger or dataset.name}),
        }
    )


def _examined(dataset: Dataset, settings: Settings) -> tuple[Finding, ...]:
    wanted = settings.dataset
    return check.findings(dataset, wanted.resolution, wanted.trigger, settings.base.model)


def _findings(found: Sequence[Finding]) -> Markup:
    """Errors and warnings; notes only matter to who looks after the dataset."""
    tones = {"error": "bad", "warning": "warn"}
    return Markup("").join(
        parts.notices([f"{finding.message} {finding.fix}".strip()], tones[finding.severity])
        for finding in found
        if finding.severity in tones
    )


def _new_id(name: str) -> str:
    """A short name for a directory that nobody has used."""
    readable = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:32] or "run"
    return f"{readable}-{secrets.token_hex(3)}"
