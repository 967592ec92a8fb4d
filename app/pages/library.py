"""Library: every adapter as a card, to preview, download, rename, mark, delete and import."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gradio as gr
from markupsafe import Markup

from app import media, parts
from app.faults import guarded
from app.library import Entry
from app.overview import cover
from app.pages.frame import AT_ONCE, page
from app.workshop import Workshop
from trainer.errors import AdapterError
from trainer.model.bases import Family

_PRESS = """element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-ref]');
  if (button) trigger('select', { ref: button.dataset.ref, wanted: button.dataset.wanted });
});"""

_FAMILY_TITLES = {Family.SD1: "SD 1.x", Family.SD2: "SD 2.x", Family.SDXL: "SDXL"}


class LibraryPage:
    """The page at `/library`."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        self.library = workshop.library

    def draw(self, demo: Any) -> None:
        with page(self.workshop, demo, "Library"):
            with gr.Row(elem_classes="toolbar"):
                gr.HTML(parts.title("Library", "Adapters that you trained or brought along."))
                self.bring = gr.UploadButton(
                    "Import .safetensors", file_types=[".safetensors"], file_count="multiple",
                    elem_id="import", scale=0, min_width=200,
                )  # fmt: skip
            self.cards = gr.HTML("", js_on_load=_PRESS, elem_id="cards")
            self.picked = gr.Textbox("", visible=False)
            with gr.Column(visible=False, elem_classes="dialog") as self.renaming:
                gr.HTML("<h2>Rename</h2>")
                self.name = gr.Textbox(label="Name", elem_id="name", max_length=100)
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
        self._connect(demo)

    def _connect(self, demo: Any) -> None:
        dialogs = [self.renaming, self.deleting]
        demo.load(self.show, None, self.cards, **AT_ONCE)
        self.cards.select(
            self.press,
            None,
            [self.cards, self.picked, *dialogs, self.name, self.warning],
            **AT_ONCE,
        )
        gr.on(
            [self.rename.click, self.name.submit],
            self.give_name, [self.picked, self.name], [self.cards, *dialogs], **AT_ONCE,
        )  # fmt: skip
        self.delete.click(self.remove, self.picked, [self.cards, *dialogs], **AT_ONCE)
        gr.on([self.keep.click, self.keep_name.click], _closed, None, dialogs, **AT_ONCE)
        self.bring.upload(self.take, self.bring, self.cards, api_name="import_adapter")

    @guarded
    def show(self) -> str:
        """All cards."""
        entries = self.library.entries()
        if not entries:
            return str(parts.empty("No adapters yet. Train one, or import a .safetensors file.",
                                   "/train", "Train an adapter"))  # fmt: skip
        cards = Markup("").join(_card(entry, self._cover(entry)) for entry in entries)
        return str(Markup('<div class="cards">{}</div>').format(cards))

    @guarded
    def press(self, event: gr.EventData) -> list[Any]:
        """A button on a card: marks it, or opens the dialog to rename or delete."""
        entry = self.library.find(str(event._data.get("ref", "")))
        wanted = event._data.get("wanted")
        if wanted == "star":
            self.library.star(entry.ref)
            return [self.show(), entry.ref, *_closed(), "", ""]
        return [
            gr.skip(),
            entry.ref,
            gr.update(visible=wanted == "rename"),
            gr.update(visible=wanted == "delete"),
            entry.title,
            str(_warning(entry)),
        ]

    @guarded
    def give_name(self, ref: str, name: str) -> list[Any]:
        """Renames the picked adapter."""
        self.library.rename(ref, name)
        return [self.show(), *_closed()]

    @guarded
    def remove(self, ref: str) -> list[Any]:
        """Deletes the picked adapter, once its owner has confirmed it."""
        self.library.delete(ref)
        return [self.show(), *_closed()]

    @guarded
    def take(self, uploads: list[str] | None) -> str:
        """Adapter files into the library; those that are none are named, the others taken."""
        for upload in map(Path, uploads or []):
            try:
                self.library.add(upload, upload.name)
            except AdapterError as error:
                gr.Warning(str(error).replace(str(upload), upload.name), duration=None)
            finally:
                upload.unlink(missing_ok=True)
        return self.show()

    def _cover(self, entry: Entry) -> str | None:
        if entry.run is None:
            return None
        return cover(entry.run, self.workshop.histories.of(self.workshop.jobs.run(entry.run)))


def _closed() -> list[Any]:
    return [gr.update(visible=False), gr.update(visible=False)]


def _warning(entry: Entry) -> Markup:
    what = "the whole run, with its checkpoints and samples" if entry.run else "the file"
    return Markup("<h2>Delete {}?</h2><p>This removes {}. It cannot be undone.</p>").format(
        entry.title, what
    )


def _card(entry: Entry, cover: str | None) -> Markup:
    date = datetime.datetime.fromtimestamp(entry.created).strftime("%d %b %Y")
    family = entry.header.family
    facts = [
        entry.base or (_FAMILY_TITLES[family] if family else "unknown base"),
        f"rank {entry.rank}" if entry.rank else "",
        parts.size(entry.size),
        date,
    ]
    picture = (
        Markup('<img src="{}" alt="" loading="lazy">').format(cover)
        if cover
        else Markup('<span class="no-cover">{}</span>').format(entry.title[:1].upper())
    )
    return Markup(
        '<article class="card"><a class="cover" href="/preview?{query}">{picture}</a>'
        '<div class="card-text"><h3>{title}</h3><p class="trigger">{trigger}</p>'
        '<p class="quiet">{facts}</p></div><div class="card-actions">'
        '<a class="button small primary" href="/preview?{query}">Preview</a>'
        '<a class="button small" href="{file}" download>Download</a>'
        '<button class="icon star" aria-pressed="{starred}" title="Favourite" data-ref="{ref}" '
        'data-wanted="star">{star}</button>'
        '<button class="icon" data-ref="{ref}" data-wanted="rename">Rename</button>'
        '<button class="icon alarm" data-ref="{ref}" data-wanted="delete">Delete</button>'
        "</div></article>"
    ).format(
        query=urlencode({"adapter": entry.ref}),
        picture=picture,
        title=entry.title,
        trigger=entry.trigger,
        facts=" · ".join(fact for fact in facts if fact),
        file=media.download(entry.ref),
        ref=entry.ref,
        starred="true" if entry.favourite else "false",
        star="★" if entry.favourite else "☆",
    )
