"""One adapter of the library: what is in it, a note about it, and what can be made of it."""

from __future__ import annotations

import datetime
import json
from typing import Any
from urllib.parse import urlencode

import gradio as gr
from markupsafe import Markup

from app import media, parts
from app.faults import guarded
from app.library import Entry
from app.overview import cover
from app.pages.frame import AT_ONCE, GO, LATEST
from app.workbench import percent, whole
from app.workshop import Workshop
from trainer.errors import AdapterError, UserError
from trainer.model.bases import Family

FAMILY_TITLES = {Family.SD1: "SD 1.x", Family.SD2: "SD 2.x", Family.SDXL: "SDXL"}
_PART_TITLES = {
    "unet": "UNet",
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
}
_LONG = 4000  # characters of one value of the metadata that are shown
_TARGETS: list[tuple[str, str]] = [
    ("kohya: A1111, Forge, ComfyUI and most tools", "kohya"),
    ("diffusers: PEFT names", "diffusers"),
]


class AdapterView:
    """The view of `/library?adapter=REF`; `&with=REF` opens its comparison with another."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        self.library = workshop.library
        self.bench = workshop.workbench

    def draw(self, demo: Any, finished: Any) -> None:
        """Draws the view; `finished` changes when an operation is done."""
        self.head = gr.HTML("", elem_id="adapter-head")
        with gr.Row(elem_classes="bench"):
            with gr.Column(scale=3, min_width=300):
                self.facts = gr.HTML("", elem_id="facts")
                self.note = gr.Textbox(label="Note", lines=2, elem_id="note", max_length=2000,
                                       placeholder="What it is good for, and at which strength",
                                       interactive=True)  # fmt: skip
                self.saved = gr.HTML("", elem_id="note-saved")
                self.norms = gr.HTML("", elem_id="norms")
                self.measure = gr.Button("Measure how strongly it acts", elem_id="measure")
            with gr.Column(scale=2, min_width=300, elem_classes="sheet tools"):
                self._draw_tools()
        self.report = gr.HTML("", elem_id="comparison")
        with gr.Accordion("Metadata of the file", open=False, elem_id="metadata"):
            self.metadata = gr.HTML("")
        self._draw_dialogs()
        self._connect(demo, finished)

    def _draw_tools(self) -> None:
        gr.HTML("<h2>Make something of it</h2>")
        with gr.Accordion("Make it smaller", open=False, elem_id="resize-tool"):
            gr.HTML('<p class="quiet">Keeps the directions that matter most, layer by layer. '
                    "What it loses is said when it is done.</p>")  # fmt: skip
            self.rank = gr.Textbox(label="Rank", placeholder="empty to go by energy", max_lines=1,
                                   elem_id="new-rank", interactive=True)  # fmt: skip
            self.energy = gr.Slider(50, 100, value=95, step=1, label="Energy to keep, %",
                                    elem_id="energy", interactive=True)  # fmt: skip
            self.resize = gr.Button("Resize", elem_id="resize")
        with gr.Accordion("Convert its format", open=False, elem_id="convert-tool"):
            self.target = gr.Radio(_TARGETS, value="diffusers", label="Key names", elem_id="target")
            self.convert = gr.Button("Convert", elem_id="convert")
        with gr.Accordion("Compare it with another", open=False, elem_id="compare-tool") as opened:
            self.other = gr.Dropdown([], label="The other adapter", elem_id="other")
            self.compare = gr.Button("Compare", elem_id="compare")
        self.comparing = opened

    def _draw_dialogs(self) -> None:
        with gr.Column(visible=False, elem_classes="dialog") as self.renaming:
            gr.HTML("<h2>Rename</h2>")
            self.name = gr.Textbox(label="Name", elem_id="name", max_length=100, interactive=True)
            with gr.Row():
                self.keep_name = gr.Button("Cancel", elem_id="keep-name", min_width=100)
                self.rename = gr.Button("Rename", variant="primary", elem_id="rename",
                                        min_width=100)  # fmt: skip
        with gr.Column(visible=False, elem_classes="dialog") as self.deleting:
            self.warning = gr.HTML("")
            with gr.Row():
                self.keep = gr.Button("Keep it", elem_id="keep", min_width=100)
                self.delete = gr.Button("Delete", variant="stop", elem_id="delete",
                                        min_width=100)  # fmt: skip
        with gr.Row(elem_classes="actions"):
            self.ask_name = gr.Button("Rename", size="sm", elem_id="ask-rename", scale=0)
            self.ask_delete = gr.Button("Delete", size="sm", variant="stop", elem_id="ask-delete",
                                        scale=0)  # fmt: skip

    def _connect(self, demo: Any, finished: Any) -> None:
        self.ref = gr.Textbox("", visible=False)
        self.gone = gr.Textbox("", visible=False)
        dialogs = [self.renaming, self.deleting]
        shown = [
            self.ref, self.head, self.facts, self.note, self.norms, self.measure, self.other,
            self.comparing, self.report, self.metadata, self.name, self.warning,
        ]  # fmt: skip
        demo.load(self.open, None, shown, **AT_ONCE)
        self.note.blur(self.write, [self.ref, self.note], self.saved, **LATEST)
        for button, task, inputs in (
            (self.measure, self.begin_measure, [self.ref]),
            (self.resize, self.begin_resize, [self.ref, self.rank, self.energy]),
            (self.convert, self.begin_convert, [self.ref, self.target]),
            (self.compare, self.begin_compare, [self.ref, self.other]),
        ):
            button.click(task, inputs, None, **AT_ONCE)
        finished.change(self.results, [self.ref, self.other],
                        [self.norms, self.measure, self.report], **LATEST)  # fmt: skip
        self.other.input(self.results, [self.ref, self.other],
                         [self.norms, self.measure, self.report], **LATEST)  # fmt: skip
        self.ask_name.click(lambda: gr.update(visible=True), None, self.renaming, **AT_ONCE)
        self.ask_delete.click(lambda: gr.update(visible=True), None, self.deleting, **AT_ONCE)
        gr.on([self.keep.click, self.keep_name.click], _closed, None, dialogs, **AT_ONCE)
        gr.on(
            [self.rename.click, self.name.submit],
            self.give_name, [self.ref, self.name], [self.head, *dialogs], **AT_ONCE,
        )  # fmt: skip
        self.delete.click(self.remove, self.ref, self.gone, **AT_ONCE)
        self.gone.change(None, self.gone, None, js=GO)

    @guarded
    def open(self, request: gr.Request) -> list[Any]:
        """Everything about the adapter that the address names."""
        ref = request.query_params.get("adapter", "")
        if not ref:
            return [gr.skip()] * 12
        try:
            entry = self.library.find(ref)
        except AdapterError as error:
            gone = parts.empty(str(error), "/library", "To the library")
            return ["", str(gone), *[gr.skip()] * 10]
        other = request.query_params.get("with", "")
        others = [(it.title, it.ref) for it in self.library.entries() if it.ref != ref]
        known = other if other in [it for _, it in others] else None
        return [
            ref,
            str(_head(entry)),
            str(self._facts(entry)),
            entry.note,
            *self._norms(entry),
            gr.update(choices=others, value=known),
            gr.update(open=known is not None),
            self._report(entry, known),
            str(_metadata(entry)),
            entry.title,
            str(warning(entry)),
        ]

    @guarded
    def results(self, ref: str, other: str | None) -> list[Any]:
        """What operations have found out about this adapter by now."""
        if not ref:
            return [gr.skip()] * 3
        entry = self.library.find(ref)
        return [*self._norms(entry), self._report(entry, other)]

    @guarded
    def write(self, ref: str, note: str) -> str:
        """Keeps the note, and says so."""
        self.library.write_note(ref, note)
        return '<p class="saved">Saved</p>'

    @guarded
    def begin_measure(self, ref: str) -> None:
        """Queues the reading of the tensors."""
        self.bench.measure(self.library.find(ref))

    @guarded
    def begin_resize(self, ref: str, rank: str, energy: float) -> None:
        """Queues a smaller adapter: of the rank, if there is one, else by energy."""
        entry = self.library.find(ref)
        wanted = whole(rank)
        self.bench.resize(entry, wanted, None if wanted is not None else energy / 100)

    @guarded
    def begin_convert(self, ref: str, target: str) -> None:
        """Queues a copy with the other key names."""
        if target not in ("kohya", "diffusers"):
            raise UserError("There is no such format.")
        self.bench.convert(self.library.find(ref), "kohya" if target == "kohya" else "diffusers")

    @guarded
    def begin_compare(self, ref: str, other: str | None) -> None:
        """Queues a conflict report."""
        if not other:
            raise UserError("Choose the other adapter first.")
        one, two = self.library.find(ref), self.library.find(other)
        self.bench.compare((one, 1.0), (two, 1.0))

    @guarded
    def give_name(self, ref: str, name: str) -> list[Any]:
        """Renames the adapter."""
        self.library.rename(ref, name)
        return [str(_head(self.library.find(ref))), *_closed()]

    @guarded
    def remove(self, ref: str) -> str:
        """Deletes the adapter, once its owner has confirmed it; returns where to go."""
        self.library.delete(ref)
        return "/library"

    def _facts(self, entry: Entry) -> Markup:
        picture = covered(self.workshop, entry)
        image = Markup('<img class="portrait" src="{}" alt="">').format(picture) if picture else ""
        unused = entry.told.unused
        sentences = (
            [f"{len(unused)} tensors are not understood and have no effect here, such as "
             f"{unused[0]}."] if unused else []
        )  # fmt: skip
        return Markup('<div class="portrayed">{}{}</div>{}').format(
            image, parts.facts_list(facts(entry)), parts.notices(sentences)
        )

    def _norms(self, entry: Entry) -> list[Any]:
        measured = self.bench.measured(entry)
        if measured is None:
            return ["", gr.update(visible=True)]
        return [str(_bars(measured["blocks"], measured["norm"])), gr.update(visible=False)]

    def _report(self, entry: Entry, other: str | None) -> str:
        if not other:
            return ""
        found = self.bench.compared((entry, 1.0), (self.library.find(other), 1.0))
        if found is None:
            return '<p class="quiet">These two have not been compared yet.</p>'
        report, key = found
        lines = Markup("").join(
            Markup("<p>{}</p>").format(line) for line in report["words"].splitlines()
        )
        mix = urlencode({"adapter": entry.ref, "with": other})
        return str(
            Markup(
                '<section class="conflict"><h2>{} and {}</h2><div>{}<p><a class="button small" '
                'href="/preview?{}">Mix these two</a></p></div><a href="{picture}"><img '
                'src="{picture}" alt="Overlap by block"></a></section>'
            ).format(*report["names"], lines, mix, picture=media.comparison(key))
        )


def facts(entry: Entry) -> list[tuple[str, str]]:
    """What the header tells of an adapter, name and value."""
    told, header = entry.told, entry.header
    kinds = ", ".join(f"{kind} ({count} layers)" for kind, count in told.kinds.items())
    ranks = sorted(told.ranks)
    rank = f"{ranks[0]} to {ranks[-1]}, mostly {told.rank}" if len(ranks) > 1 else str(
        told.rank or "")  # fmt: skip
    places = ", ".join(
        f"{count} in the {_PART_TITLES.get(part, part)}" for part, count in told.parts.items()
    )
    return [
        ("Family", FAMILY_TITLES[header.family] if header.family else "not told by the file"),
        ("Base", entry.base or ""),
        ("Trigger", entry.trigger),
        ("Kind", kinds),
        ("Rank", rank),
        ("Alpha", f"{told.alpha:g}" if told.alpha else ""),
        ("Layers", places),
        ("Parameters", f"{told.parameters:,}".replace(",", " ")),
        ("Number format", told.dtype or ""),
        ("Key names", told.form),
        ("Size", parts.size(entry.size)),
        ("Since", datetime.datetime.fromtimestamp(entry.created).strftime("%d %b %Y, %H:%M")),
    ]


def covered(workshop: Workshop, entry: Entry) -> str | None:
    """Address of a picture of what an adapter does, if its run drew one."""
    if entry.run is None:
        return None
    return cover(entry.run, workshop.histories.of(workshop.jobs.run(entry.run)))


def warning(entry: Entry) -> Markup:
    """The question before an adapter is deleted."""
    what = "the whole run, with its checkpoints and samples" if entry.run else "the file"
    return Markup("<h2>Delete {}?</h2><p>This removes {}. It cannot be undone.</p>").format(
        entry.title, what
    )


def _closed() -> list[Any]:
    return [gr.update(visible=False), gr.update(visible=False)]


def _head(entry: Entry) -> Markup:
    run = (
        Markup('<a class="button" href="/train?run={}">Its run</a>').format(entry.run)
        if entry.run
        else ""
    )
    return Markup(
        '<a class="back" href="/library">← Library</a><div class="title"><h1>{title}</h1></div>'
        '<div class="actions"><a class="button primary" href="/preview?{query}">Preview</a>'
        '<a class="button" href="{file}" download>Download</a>{run}</div>'
    ).format(
        title=entry.title,
        query=urlencode({"adapter": entry.ref}),
        file=media.download(entry.ref),
        run=run,
    )


def _bars(blocks: dict[str, float], norm: float) -> Markup:
    largest = max(blocks.values(), default=0.0) or 1.0
    rows = Markup("").join(
        Markup(
            '<div><dt>{}</dt><dd><span class="meter busy"><i style="width:{}%"></i></span>'
            "<span>{}</span></dd></div>"
        ).format(block, f"{100 * value / largest:.1f}", percent(value**2 / norm**2 if norm else 0))
        for block, value in blocks.items()
    )
    return Markup(
        '<section><h2>Where it acts</h2><p class="quiet">Share of the energy ‖ΔW‖² by block; '
        '‖ΔW‖ is {} in all.</p><dl class="bars">{}</dl></section>'
    ).format(f"{norm:.4g}", rows)


def _metadata(entry: Entry) -> Markup:
    if not entry.told.metadata:
        return Markup('<p class="quiet">The file has none.</p>')
    rows = Markup("").join(
        Markup("<div><dt>{}</dt><dd><pre>{}</pre></dd></div>").format(key, _readable(value))
        for key, value in sorted(entry.told.metadata.items())
    )
    return Markup('<dl class="metadata">{}</dl>').format(rows)


def _readable(value: str) -> str:
    """A value as it is, JSON indented, and cut where it is very long."""
    if value[:1] in "{[":
        try:
            value = json.dumps(json.loads(value), indent=2, ensure_ascii=False)
        except (ValueError, RecursionError):
            return value[:_LONG]
    return value if len(value) <= _LONG else f"{value[:_LONG]} …"
