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
from app.form import LEAVES, PATHS, Form, differences
from app.overview import overview
from app.pages import check_panel
from app.pages.draft import FORGET, NOTHING, Draft, restored
from app.pages.frame import AT_ONCE, GO, LATEST, page
from app.pages.run_view import RunView
from app.workshop import Workshop
from trainer.errors import AtelierError, DatasetError, SettingsError
from trainer.presets import PRESETS, Family, Goal
from trainer.run import Run
from trainer.settings import Settings

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
    `?dataset=NAME&preset=NAME&ordinary=NAME` fills it for a start."""

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
        with gr.Row(elem_classes="draft-note", visible=False) as self.draft_note:
            gr.HTML("<p>What you wrote before is back.</p>")
            self.anew = gr.Button("Begin anew", size="sm", scale=0, min_width=120, elem_id="anew")
        with gr.Row(elem_classes="bench"):
            with gr.Column(scale=3, min_width=300, elem_id="answers"):
                self._draw_answers()
            with gr.Column(scale=2, min_width=280, elem_classes="sheet check"):
                gr.HTML("<h2>Check</h2>")
                self.checked = gr.HTML("", elem_id="check")
                self.reset = gr.Button("Back to the preset", size="sm", visible=False,
                                       elem_id="reset")  # fmt: skip
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
            self.search = gr.Textbox(show_label=False, placeholder="Find a setting",
                                     elem_id="find-setting", max_lines=1)  # fmt: skip
            self.form.draw(
                "base.model",
                info=f"{LEAVES['base.model'].help} Folders and files are looked for in "
                f"{self.workshop.bases.folder.name}/ of the data directory.",
            )
            self.start_from = gr.Dropdown(
                [("nothing", "")], value="", label="Start from an adapter", elem_id="start-from",
                info=LEAVES["adapter.start_from"].help,
            )  # fmt: skip
            self.ordinary = gr.Dropdown(
                [("none", "")], value="", label="Regularisation images", elem_id="ordinary",
                info="A dataset of ordinary pictures of such things, which the adapter is not to "
                "change (prior preservation).",
            )  # fmt: skip
            self.form.draw_sections(n for n in LEAVES if n not in {*SIMPLE, *PATHS, "base.model"})

    def _connect(self, demo: Any) -> None:
        form, checks = self.form, [self.goal, self.family]
        everything = {self.dataset, self.start_from, self.ordinary, *checks, *form.outputs}
        personal = [form.components[name] for name in PERSONAL]
        apart = {"dataset": self.dataset, "start_from": self.start_from, "ordinary": self.ordinary,
                 "goal": self.goal, "family": self.family}  # fmt: skip
        self.draft = Draft({**apart, **form.components})
        shown = [self.draft_note, *apart.values(), *form.outputs]
        filled = demo.load(self.fill, self.draft.state, shown, **AT_ONCE)
        emptied = self.anew.click(self.begin_anew, None, [self.draft.state, *shown], js=FORGET,
                                  **AT_ONCE)  # fmt: skip
        preset = gr.on(
            [self.goal.input, self.family.input, self.reset.click], self.use_preset, checks,
            form.outputs, **LATEST,
        )  # fmt: skip
        chosen = self.dataset.input(self.suggest, [self.dataset, *personal], personal, **LATEST)
        for changed in (filled, emptied, preset, chosen):
            self._checked(changed.then, everything)
        for name, component in form.components.items():
            written = LEAVES[name].kind not in ("switch", "choice")
            self._checked(component.blur if written else component.input, everything)
        self.search.change(form.find, self.search, form.found, **LATEST)
        self.start.click(
            self.begin,
            everything,
            [self.address, self.draft.state, self.problems, self.advanced, *form.boxes,
             *form.outputs],
            api_visibility="private",
        )  # fmt: skip
        self.address.change(None, self.address, None, js=GO)
        demo.load(self.show_recent, None, self.recent, **AT_ONCE)

    def _checked(self, when: Callable[..., Any], everything: set[Any]) -> None:
        """After `when`, the counts are shown at once, and what the images show when it is known."""
        when(self.look, everything, [self.checked, self.reset], **AT_ONCE).then(
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
    def fill(self, draft: Any, request: gr.Request) -> list[Any]:
        """The form as it was left here, or as the address wants it."""
        if values := restored(draft, request.query_params):
            return [gr.update(visible=True), *self._restored(values)]
        return [gr.update(visible=False), *self._fresh(request)]

    @guarded
    def begin_anew(self, request: gr.Request) -> list[Any]:
        """Forgets the draft."""
        return [NOTHING, gr.update(visible=False), *self._fresh(request)]

    def _restored(self, values: Mapping[str, Any]) -> list[Any]:
        """The form with a draft in it, as far as its values are possible."""
        names = self.workshop.datasets.names()
        starts = self._starts()
        dataset, start = values.get("dataset"), values.get("start_from")
        return [
            gr.update(choices=names, value=dataset if dataset in names else None),
            {**starts, "value": start if start in [ref for _, ref in starts["choices"]] else ""},
            _ordinary(names, values.get("ordinary")),
            _one_of(values.get("goal"), [goal for _, goal in GOALS]),
            _one_of(values.get("family"), [family for _, family in FAMILIES]),
            *self.form.restore(values),
        ]

    def _fresh(self, request: gr.Request) -> list[Any]:
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
        ordinary = _ordinary(names, query.get("ordinary"))
        return [dataset, self._starts(), ordinary, preset.goal, preset.family, *shown]

    def _starts(self) -> Any:
        entries = self.workshop.library.entries()
        return gr.update(choices=[("nothing", ""), *((it.title, it.ref) for it in entries)])

    def _after(self, id: str, names: list[str]) -> list[Any]:
        settings = self.workshop.jobs.run(id).settings()
        folder = settings.dataset.folder.name if settings.dataset.folder else ""
        dataset = gr.update(choices=names, value=folder if folder in names else None)
        others = settings.dataset.class_folder
        ordinary = _ordinary(names, others.name if others else None)
        return [dataset, self._starts(), ordinary, gr.skip(), gr.skip(),
                *self.form.show(settings)]  # fmt: skip

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
    def look(self, data: Mapping[Any, Any]) -> list[Any]:
        """The check panel for what the page shows, and the way back to the preset."""
        unchanged = gr.update(visible=False)
        dataset = self._dataset(data[self.dataset])
        if dataset is None:
            if not self.workshop.datasets.names():
                nothing = parts.empty("There is no dataset yet.", "/datasets", "Make one")
                return [str(nothing), unchanged]
            return ['<p class="quiet">Choose a dataset.</p>', unchanged]
        if not dataset.images:
            way = "/datasets?" + urlencode({"dataset": dataset.name})
            return [str(parts.empty("This dataset has no images yet.", way, "Add images")),
                    unchanged]  # fmt: skip
        try:
            settings = self._settings(data, dataset)
        except SettingsError as error:
            told = parts.notices([str(problem) for problem in error.problems], tone="bad")
            return [str(told), gr.skip()]
        preset = PRESETS[f"{data[self.family]}-{data[self.goal]}"].settings()
        changed = differences(settings, preset, {*PERSONAL, *PATHS})
        way_back = gr.update(visible=bool(changed))
        try:
            facts = check_panel.facts(dataset, self._with_base(settings))
        except AtelierError as error:
            return [str(parts.notices([str(error)], tone="bad")), way_back]
        return [str(facts + check_panel.changed(changed)), way_back]

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
        return str(check_panel.findings(check_panel.examined(dataset, settings)))

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
                gr.skip(),
                str(parts.notices(told, tone="bad")),
                gr.update(open=True) if hidden else gr.skip(),
                *self.form.open_sections(problems),
                *self.form.show_problems(problems),
            ]
        unfolded = self.form.open_sections(())
        return [f"/train?run={id}", NOTHING, "", gr.skip(), *unfolded, *self.form.show_problems(())]

    def _create(self, data: Mapping[Any, Any]) -> str:
        dataset = self._dataset(data[self.dataset])
        if dataset is None or not dataset.images:
            raise DatasetError("There is nothing to learn from.", "Choose a dataset with images.")
        if dataset.name == data[self.ordinary]:
            raise DatasetError("The regularisation images are the dataset itself.",
                               "Choose a dataset of ordinary pictures, or none.")  # fmt: skip
        settings = self._with_base(self._settings(data, dataset))
        check.size(settings)  # names of layers that the base lacks are told here
        for finding in check_panel.examined(dataset, settings):
            if finding.severity == "error":
                raise DatasetError(finding.message, finding.fix or None)
        id = _new_id(settings.output.name)
        Run(self.workshop.jobs.folder / id).create(settings)
        self.workshop.jobs.submit(id)
        return id

    def _with_base(self, settings: Settings) -> Settings:
        """The settings with the base as a reference that the trainer reads.

        Raises:
            BaseModelError: if no page may name this base.
        """
        base = settings.base.model_copy(
            update={"model": self.workshop.bases.check(settings.base.model)}
        )
        return settings.model_copy(update={"base": base})

    def _settings(self, data: Mapping[Any, Any], dataset: Dataset) -> Settings:
        further = {"dataset.folder": str(dataset.folder)}
        if ref := data[self.start_from]:
            further["adapter.start_from"] = str(self.workshop.library.find(ref).file)
        if others := self._dataset(data[self.ordinary]):
            further["dataset.class_folder"] = str(others.folder)
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


def _ordinary(names: Sequence[str], name: Any) -> Any:
    """The choice of regularisation images among the datasets, `name` if there is such."""
    choices = [("none", ""), *((it, it) for it in names)]
    return gr.update(choices=choices, value=name if name in names else "")


def _one_of(value: Any, known: Sequence[str]) -> Any:
    return value if value in known else gr.skip()


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


def _new_id(name: str) -> str:
    """A short name for a directory that nobody has used."""
    readable = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:32] or "run"
    return f"{readable}-{secrets.token_hex(3)}"
