"""Library: every adapter as a card, files brought from elsewhere, and the view of one adapter."""

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
from app.pages.adapter import FAMILY_TITLES, AdapterView, covered
from app.pages.frame import AT_ONCE, LATEST, page
from app.pages.operations_panel import OperationsPanel
from app.workbench import address
from app.workshop import Workshop
from trainer.errors import AdapterError

_PRESS = """element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-ref]');
  if (button) trigger('select', { ref: button.dataset.ref });
});"""


class LibraryPage:
    """The page at `/library`; `?adapter=REF` shows one."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        self.library = workshop.library
        self.view = AdapterView(workshop)
        self.panel = OperationsPanel(workshop.workbench.operations)

    def draw(self, demo: Any) -> None:
        with page(self.workshop, demo, "Library"):
            self.panel.draw(demo)
            with gr.Column() as everything:
                with gr.Row(elem_classes="toolbar"):
                    gr.HTML(parts.title("Library", "Adapters that you trained or brought along."))
                    self.bring = gr.UploadButton(
                        "Import .safetensors", file_types=[".safetensors"], file_count="multiple",
                        elem_id="import", scale=0, min_width=200,
                    )  # fmt: skip
                self.told = gr.HTML("", elem_id="import-report")
                self.search = gr.Textbox(
                    show_label=False, placeholder="Find by name, trigger word, base or note",
                    elem_id="search", max_lines=1, visible=False, interactive=True,
                )  # fmt: skip
                self.cards = gr.HTML("", js_on_load=_PRESS, elem_id="cards")
            with gr.Column(visible=False) as one:
                self.view.draw(demo, self.panel.finished)
        self._connect(demo, [everything, one])

    def _connect(self, demo: Any, columns: list[Any]) -> None:
        demo.load(self.choose, None, columns, **AT_ONCE)
        demo.load(self.show_all, None, [self.cards, self.search], **AT_ONCE)
        self.search.change(self.show, self.search, self.cards, **LATEST)
        self.cards.select(self.star, self.search, self.cards, **AT_ONCE)
        self.panel.finished.change(self.show, self.search, self.cards, **LATEST)
        self.bring.upload(self.take, self.bring, [self.cards, self.told, self.search],
                          api_name="import_adapter")  # fmt: skip

    @guarded
    def choose(self, request: gr.Request) -> list[Any]:
        """Shows the cards, or the adapter that the address names."""
        one = bool(request.query_params.get("adapter"))
        return [gr.update(visible=not one), gr.update(visible=one)]

    @guarded
    def show_all(self) -> list[Any]:
        """All cards, and the search when there are enough to search."""
        return [self._cards(""), self._search()]

    @guarded
    def show(self, wanted: str) -> str:
        """The cards of the adapters that have what was searched for."""
        return self._cards(wanted)

    @guarded
    def star(self, wanted: str, event: gr.EventData) -> str:
        """Marks an adapter as a favourite, or no longer."""
        self.library.star(str(event._data.get("ref", "")))
        return self._cards(wanted)

    @guarded
    def take(self, uploads: list[str] | None) -> list[Any]:
        """Adapter files into the library, with a sentence on each; others are refused by name."""
        taken, refused = [], []
        for upload in map(Path, uploads or []):
            try:
                taken.append(_recognised(self.library.add(upload, upload.name)))
            except AdapterError as error:
                refused.append(str(error).replace(str(upload), upload.name))
            finally:
                upload.unlink(missing_ok=True)
        told = parts.notices(refused, "bad") + parts.notices(taken, "calm")
        return [self._cards(""), str(told), self._search()]

    def _search(self) -> Any:
        return gr.update(visible=len(self.library.entries()) > 6, value="")

    def _cards(self, wanted: str) -> str:
        entries = self.library.entries()
        if not entries:
            return str(parts.empty("No adapters yet. Train one, or import a .safetensors file.",
                                   "/train", "Train an adapter"))  # fmt: skip
        found = [entry for entry in entries if _matches(entry, wanted)]
        if not found:
            return str(parts.empty("No adapter has that in its name, words, base or note."))
        cards = Markup("").join(_card(entry, covered(self.workshop, entry)) for entry in found)
        return str(Markup('<div class="cards">{}</div>').format(cards))


def _matches(entry: Entry, wanted: str) -> bool:
    text = " ".join((entry.title, entry.trigger, _base(entry), entry.note)).casefold()
    return all(word in text for word in wanted.casefold().split())


def _base(entry: Entry) -> str:
    family = entry.header.family
    return entry.base or (FAMILY_TITLES[family] if family else "unknown base")


def _recognised(entry: Entry) -> str:
    """One sentence on what was imported."""
    told, family = entry.told, entry.header.family
    kinds = " and ".join(told.kinds)
    rank = f" of rank {entry.rank}" if entry.rank else ""
    where = f"for {FAMILY_TITLES[family]}" if family else "for a base that it does not tell"
    trigger = f", trigger {entry.trigger}" if entry.trigger else ""
    unused = f"; {len(told.unused)} tensors are not understood" if told.unused else ""
    return f"{entry.title}: {kinds}{rank} {where}{trigger}{unused}."


def _card(entry: Entry, cover: str | None) -> Markup:
    facts = [
        _base(entry),
        f"rank {entry.rank}" if entry.rank else "",
        parts.size(entry.size),
        datetime.datetime.fromtimestamp(entry.created).strftime("%d %b %Y"),
    ]
    picture = (
        Markup('<img src="{}" alt="" loading="lazy">').format(cover)
        if cover
        else Markup('<span class="no-cover">{}</span>').format(entry.title[:1].upper())
    )
    return Markup(
        '<article class="card"><a class="cover" href="{page}" tabindex="-1" aria-hidden="true">'
        '{picture}</a><div class="card-text"><h3><a href="{page}">{title}</a></h3>'
        '<p class="trigger">{trigger}</p><p class="quiet">{facts}</p><p class="note">{note}</p>'
        '</div><div class="card-actions">'
        '<a class="button small primary" href="/preview?{query}">Preview</a>'
        '<a class="button small" href="{file}" download>Download</a>'
        '<button class="icon star" aria-pressed="{starred}" aria-label="Favourite" '
        'title="Favourite" data-ref="{ref}">{star}</button></div></article>'
    ).format(
        page=address(entry.ref),
        query=urlencode({"adapter": entry.ref}),
        picture=picture,
        title=entry.title,
        trigger=entry.trigger,
        facts=" · ".join(fact for fact in facts if fact),
        note=entry.note,
        file=media.download(entry.ref),
        ref=entry.ref,
        starred="true" if entry.favourite else "false",
        star="★" if entry.favourite else "☆",
    )
