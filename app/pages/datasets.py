"""Datasets: images dropped onto the page, and captions that save themselves."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gradio as gr
from markupsafe import Markup

from app import media, parts
from app.datasets import Dataset, Image
from app.faults import guarded
from app.pages.dataset_tools import DatasetTools
from app.pages.frame import AT_ONCE, LATEST, page
from app.workshop import Workshop

PAGE_SIZE = 48
ALL, WITHOUT_CAPTION = "All", "Without caption"
_PICK = """element.addEventListener('click', (event) => {
  const image = event.target.closest('[data-image]');
  if (image) trigger('select', { image: image.dataset.image });
});"""
_REMEMBER = """(dataset, image) => {
  const place = new URLSearchParams();
  if (dataset) place.set('dataset', dataset);
  if (image) place.set('image', image);
  history.replaceState(null, '', location.pathname + '?' + place);
}"""
# Captions are written in the order in which they were typed, one at a time.
_SAVING: dict[str, Any] = {
    "show_progress": "hidden",
    "concurrency_id": "captions",
    "concurrency_limit": 1,
}


class DatasetsPage:
    """The page at `/datasets`; `?dataset=NAME&image=FILE` opens one there."""

    def __init__(self, workshop: Workshop) -> None:
        self.datasets = workshop.datasets
        self.workshop = workshop
        self.tools = DatasetTools(workshop.datasets)

    def draw(self, demo: Any) -> None:
        with page(self.workshop, demo, "Datasets"):
            gr.HTML(parts.title("Datasets", "Images to learn from, each with a caption."))
            with gr.Row(elem_classes="toolbar"):
                self.dataset = gr.Dropdown([], label="Dataset", elem_id="dataset", scale=3)
                self.new_name = gr.Textbox(
                    label="New dataset", placeholder="its name", elem_id="new-name", scale=2,
                    max_lines=1,
                )  # fmt: skip
                self.create = gr.Button("Create", elem_id="create", scale=0, min_width=110)
            with gr.Row(elem_classes="bench"):
                with gr.Column(scale=3, min_width=320):
                    self._draw_images()
                with gr.Column(scale=2, min_width=300, elem_classes="sheet"):
                    self._draw_caption()
            self.number = gr.Number(0, precision=0, visible=False)
            self.picked = gr.Textbox("", visible=False)
        self._connect_images(demo)
        self._connect_captions()
        entered = [self.number, self.picked, self.picture, self.caption, self.saved, self.summary,
                   self.grid, self.back, self.forth, self.train]  # fmt: skip
        where = [self.dataset, self.filter, self.picked]
        self.tools.connect(
            self.dataset, lambda event: event.then(self.show_all, where, entered, **AT_ONCE)
        )

    def _draw_images(self) -> None:
        self.summary = gr.HTML("", elem_id="summary")
        self.drop = gr.File(
            label="Images, captions (.txt) or a .zip",
            file_count="multiple",
            file_types=["image", ".txt", ".caption", ".zip", ".jsonl"],
            height=130,
            elem_id="drop",
        )
        self.report = gr.HTML("", elem_id="import-report")
        self.filter = gr.Radio([ALL, WITHOUT_CAPTION], value=ALL, show_label=False, container=False,
                               elem_id="filter")  # fmt: skip
        self.grid = gr.HTML("", js_on_load=_PICK, elem_id="grid")
        with gr.Row(elem_classes="pager"):
            self.back = gr.Button("Previous page", size="sm", elem_id="page-back", visible=False)
            self.forth = gr.Button("Next page", size="sm", elem_id="page-forth", visible=False)
        self.tools.draw()

    def _draw_caption(self) -> None:
        self.picture = gr.HTML("", elem_id="picture")
        self.caption = gr.Textbox(
            label="Caption",
            placeholder="What is to be seen",
            lines=4,
            elem_id="caption",
            interactive=True,
        )
        self.saved = gr.HTML("", elem_id="saved")
        with gr.Row():
            self.previous = gr.Button("Previous", elem_id="previous-image", min_width=100)
            self.next = gr.Button("Next", elem_id="next-image", variant="primary", min_width=100)
        self.remove = gr.Button("Remove this image", size="sm", elem_id="remove", variant="stop")
        self.train = gr.HTML("", elem_id="train-link")

    def _connect_images(self, demo: Any) -> None:
        shown = [self.summary, self.grid, self.back, self.forth, self.train]
        image = [self.picked, self.picture, self.caption, self.saved]
        everything = [self.number, *image, *shown]
        chosen = [self.dataset, self.filter]
        self._remembered(demo.load(self.open, None, [self.dataset, *everything], **AT_ONCE))
        made = gr.on(
            [self.create.click, self.new_name.submit],
            self.make, self.new_name, [self.dataset, self.new_name], api_name="create_dataset",
        )  # fmt: skip
        taken = self.drop.upload(
            self.take, [self.drop, self.dataset], [self.drop, self.dataset, self.report],
            api_name="import",
        )  # fmt: skip
        for done in (made, taken):
            self._remembered(done.success(self.enter, chosen, everything, **AT_ONCE))
        for selected in (self.dataset.input, self.filter.input):
            self._remembered(selected(self.enter, chosen, everything, **LATEST))
        for button, by in ((self.back, -1), (self.forth, 1)):
            self._shown(button.click(partial(int.__add__, by), self.number, self.number, **AT_ONCE))
        self._remembered(
            self.remove.click(self.discard, [*chosen, self.picked], everything, **AT_ONCE)
        )

    def _connect_captions(self) -> None:
        image = [self.picked, self.picture, self.caption, self.saved]
        written = [self.dataset, self.picked, self.caption]
        self._shown(
            self.caption.blur(
                self.save, written, self.saved, trigger_mode="multiple", api_name="save_caption",
                **_SAVING,
            )
        )  # fmt: skip
        picked = self.grid.select(self.pick, self.dataset, image, **LATEST)
        back = self.previous.click(self.go_back, [*written, self.filter], image, **AT_ONCE)
        on = self.next.click(self.go_on, [*written, self.filter], image, **AT_ONCE)
        for moved in (picked, back, on):
            self._remembered(self._shown(moved))

    def _shown(self, event: Any) -> Any:
        """The images are drawn anew after `event`."""
        where = [self.dataset, self.filter, self.number, self.picked]
        shown = [self.summary, self.grid, self.back, self.forth, self.train]
        return event.then(self.show, where, shown, **AT_ONCE)

    def _remembered(self, event: Any) -> None:
        """The address names what is open after `event`, so that a reload comes back to it."""
        event.then(None, [self.dataset, self.picked], None, js=_REMEMBER)

    @guarded
    def open(self, request: gr.Request) -> list[Any]:
        """The dataset that the address names, or the first one."""
        names = self.datasets.names()
        asked = request.query_params.get("dataset", "")
        name = asked if asked in names else next(iter(names), None)
        choices = gr.update(choices=names, value=name)
        return [choices, *self._enter(name, ALL, request.query_params.get("image", ""))]

    @guarded
    def enter(self, name: str | None, filter: str) -> list[Any]:
        """A dataset from its first image on."""
        return self._enter(name, filter)

    @guarded
    def show_all(self, name: str | None, filter: str, picked: str) -> list[Any]:
        """Images and captions as they are by now."""
        return self._enter(name, filter, picked)

    def _enter(self, name: str | None, filter: str, image: str = "") -> list[Any]:
        dataset = self._read(name)
        chosen = _chosen(dataset, filter)
        known = [it for it in chosen if it.name == image] or list(chosen[:1])
        picked = known[0] if known else None
        number = chosen.index(picked) // PAGE_SIZE if picked else 0
        name_picked = picked.name if picked else ""
        return [number, *_picture(dataset, picked), *_images(dataset, filter, number, name_picked)]

    @guarded
    def make(self, name: str) -> tuple[Any, Any]:
        """A new, empty dataset."""
        made = self.datasets.create(name)
        return gr.update(choices=self.datasets.names(), value=made), ""

    @guarded
    def take(self, uploads: list[str] | None, name: str | None) -> tuple[Any, Any, Any]:
        """Dropped files into the dataset; the first files make one."""
        made = name or self.datasets.create_unnamed()
        report = self.datasets.take([Path(upload) for upload in uploads or []], made)
        return (
            None,
            gr.update(choices=self.datasets.names(), value=made),
            str(parts.notices(report, tone="calm")),
        )

    @guarded
    def show(self, name: str | None, filter: str, number: int, picked: str) -> list[Any]:
        """The images of the dataset, and what there is to say of them."""
        return _images(self._read(name), filter, number, picked)

    @guarded
    def pick(self, name: str, event: gr.EventData) -> list[Any]:
        """The image that was clicked."""
        dataset = self._read(name)
        wanted = str(event._data.get("image", ""))
        return _picture(dataset, next((it for it in dataset.images if it.name == wanted), None))

    @guarded
    def save(self, name: str | None, picked: str, caption: str) -> str:
        """Writes a caption to its file."""
        if not name or not picked:
            return ""
        self.datasets.write_caption(name, picked, caption)
        return "Saved"

    @guarded
    def go_on(self, name: str, picked: str, caption: str, filter: str) -> list[Any]:
        """Saves, and picks the next image."""
        return self._step(name, picked, caption, filter, 1)

    @guarded
    def go_back(self, name: str, picked: str, caption: str, filter: str) -> list[Any]:
        """Saves, and picks the previous image."""
        return self._step(name, picked, caption, filter, -1)

    def _step(self, name: str, picked: str, caption: str, filter: str, by: int) -> list[Any]:
        self.save(name, picked, caption)
        dataset = self._read(name)
        names = [image.name for image in dataset.images]
        place = names.index(picked) if picked in names else -by
        order = dataset.images[place + 1 :] if by > 0 else dataset.images[:place][::-1]
        wanted = set(_chosen(dataset, filter))
        image = next((it for it in order if it in wanted), None)
        return _picture(dataset, image) if image else [gr.skip()] * 4

    @guarded
    def discard(self, name: str, filter: str, picked: str) -> list[Any]:
        """Removes the picked image and its caption."""
        self.datasets.remove(name, picked)
        return self._enter(name, filter)

    def _read(self, name: str | None) -> Dataset:
        if not name or name not in self.datasets.names():
            return Dataset("", self.datasets.folder)
        return self.datasets.read(name)


def _chosen(dataset: Dataset, filter: str) -> tuple[Image, ...]:
    if filter == WITHOUT_CAPTION:
        return tuple(image for image in dataset.images if not image.caption)
    return dataset.images


def _picture(dataset: Dataset, image: Image | None) -> list[Any]:
    """The picked image's name, picture, caption, and nothing said about saving yet."""
    if image is None:
        return ["", "", "", ""]
    address = media.dataset_image(dataset.name, image.name, image.changed, side=768)
    picture = Markup('<figure><img src="{}" alt="{}"><figcaption>{}</figcaption></figure>').format(
        address, image.caption or "no caption yet", image.name
    )
    return [image.name, str(picture), image.caption, ""]


def _images(dataset: Dataset, filter: str, number: int, picked: str) -> list[Any]:
    """Summary, page of thumbnails, the two page buttons, and the way to training."""
    chosen = _chosen(dataset, filter)
    last = max(0, (len(chosen) - 1) // PAGE_SIZE)
    number = min(max(number, 0), last)
    shown = chosen[number * PAGE_SIZE : (number + 1) * PAGE_SIZE]
    tiles = Markup("").join(_tile(dataset, image, image.name == picked) for image in shown)
    return [
        str(_summary(dataset)),
        str(Markup('<div class="tiles">{}</div>').format(tiles)) if shown else _nothing(dataset),
        gr.update(visible=number > 0),
        gr.update(visible=number < last, value=f"Next page ({number + 1} of {last + 1})"),
        str(_train_link(dataset)) if dataset.images else "",
    ]


def _tile(dataset: Dataset, image: Image, current: bool) -> Markup:
    return Markup(
        '<button class="tile{}" data-image="{}" title="{}"{}><img src="{}" alt="{}" '
        'loading="lazy"></button>'
    ).format(
        "" if image.caption else " uncaptioned",
        image.name,
        image.caption or "No caption yet",
        Markup(' aria-current="true"') if current else "",
        media.dataset_image(dataset.name, image.name, image.changed),
        image.name,
    )


def _summary(dataset: Dataset) -> Markup:
    if not dataset.images:
        return Markup("")
    facts = [f"{len(dataset.images)} image{'s' * (len(dataset.images) != 1)}"]
    if dataset.without_caption:
        facts.append(f"{dataset.without_caption} without caption")
    return Markup('<p class="facts"><strong>{}</strong></p>{}').format(
        " · ".join(facts), parts.notices(dataset.notices)
    )


def _nothing(dataset: Dataset) -> str:
    if dataset.images:
        return str(parts.empty("Every image has its caption."))
    if dataset.name:
        return str(parts.empty("No images yet. Drop some above: ten to thirty make a good start."))
    return str(parts.empty("No dataset yet. Name one above, or drop images and one is made."))


def _train_link(dataset: Dataset) -> Markup:
    return Markup('<a class="button" href="/train?{}">Train on this dataset</a>').format(
        urlencode({"dataset": dataset.name})
    )
