"""What can be done with a whole dataset: looked over, and all its captions changed at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import gradio as gr
from markupsafe import Markup

from app import check, parts
from app.captions import replaced, without_word
from app.datasets import Dataset, Datasets
from app.faults import guarded
from app.pages.frame import AT_ONCE
from trainer.data.captions import with_trigger
from trainer.data.findings import Finding
from trainer.data.report import Report
from trainer.errors import UserError
from trainer.settings import Settings

_FILES_SHOWN = 6
_RESOLUTIONS = [("64, as the embedded base", 64), ("512, as SD 1.x", 512), ("768, as SD 2.x", 768),
                ("1024, as SDXL", 1024)]  # fmt: skip
_TONES = {"error": "bad", "warning": "warn", "note": "calm"}


class DatasetTools:
    """Two folded boxes below the images of a dataset."""

    def __init__(self, datasets: Datasets) -> None:
        self.datasets = datasets

    def draw(self) -> None:
        with gr.Accordion("Look them over", open=False, elem_id="look-over"):
            with gr.Row(elem_classes="fields"):
                self.resolution = gr.Dropdown(
                    _RESOLUTIONS, value=Settings().dataset.resolution, label="For training at",
                    elem_id="check-resolution", min_width=140,
                )  # fmt: skip
                self.look = gr.Button("Check images and captions", elem_id="check-dataset")
            self.findings = gr.HTML("", elem_id="dataset-findings")
        with gr.Accordion("Change all captions", open=False, elem_id="bulk"):
            with gr.Row(elem_classes="fields"):
                self.old = _box("Find", "bulk-find")
                self.new = _box("Put instead", "bulk-replace")
                self.replace = gr.Button("Replace", elem_id="bulk-do-replace", min_width=90)
            with gr.Row(elem_classes="fields"):
                self.word = _box("Word, such as a trigger", "bulk-word")
                self.add = gr.Button("Put in front", elem_id="bulk-add", min_width=90)
                self.drop = gr.Button("Take out", elem_id="bulk-drop", min_width=90)
            self.told = gr.HTML("", elem_id="bulk-told")
            self.undo = gr.Button("Undo", size="sm", visible=False, elem_id="bulk-undo")

    def connect(self, dataset: Any, shown_anew: Callable[[Any], Any]) -> None:
        """`shown_anew` shows images and captions again after an event."""
        self.look.click(self.examine, [dataset, self.resolution], self.findings,
                        show_progress="minimal", api_visibility="private")  # fmt: skip
        for button, change, inputs in (
            (self.replace, self.put_instead, [dataset, self.old, self.new]),
            (self.add, self.put_in_front, [dataset, self.word]),
            (self.drop, self.take_out, [dataset, self.word]),
            (self.undo, self.take_back, [dataset]),
        ):
            shown_anew(button.click(change, inputs, [self.told, self.undo], **AT_ONCE))

    @guarded
    def examine(self, name: str | None, resolution: int) -> str:
        """The report on the dataset, for training at a resolution."""
        dataset = self._read(name)
        defaults = Settings()
        report = check.looked_over(
            dataset, resolution, dataset.suggested_trigger() or None, defaults.base.model,
            defaults.dataset.max_tokens,
        )  # fmt: skip
        found = Markup("").join(_finding(dataset.name, finding) for finding in report.findings)
        fine = parts.notices(["Nothing to complain about."], tone="calm")
        return str(_sizes(report) + (found or fine))

    @guarded
    def put_instead(self, name: str | None, old: str, new: str) -> list[Any]:
        """One text for another in all captions."""
        if not old:
            raise UserError("Write what to find first.")
        return self._changed(name, lambda caption: replaced(caption, old, new))

    @guarded
    def put_in_front(self, name: str | None, word: str) -> list[Any]:
        """A word in front of all captions that lack it."""
        return self._changed(name, lambda caption: with_trigger(caption, _given(word)))

    @guarded
    def take_out(self, name: str | None, word: str) -> list[Any]:
        """A word out of all captions."""
        return self._changed(name, lambda caption: without_word(caption, _given(word)))

    @guarded
    def take_back(self, name: str | None) -> list[Any]:
        """The captions as they were before the last change of all."""
        count = self.datasets.undo(self._read(name).name)
        return [_told(f"{_captions(count)} as before."), gr.update(visible=False)]

    def _changed(self, name: str | None, change: Callable[[str], str]) -> list[Any]:
        count = self.datasets.rewrite(self._read(name).name, change)
        return [_told(f"{_captions(count)} changed."), gr.update(visible=count > 0)]

    def _read(self, name: str | None) -> Dataset:
        if not name:
            raise UserError("Choose a dataset first.")
        return self.datasets.read(name)


def _box(label: str, id: str) -> Any:
    return gr.Textbox(label=label, elem_id=id, max_lines=1, min_width=140, interactive=True)


def _given(word: str) -> str:
    if not word.strip():
        raise UserError("Write the word first.")
    return word.strip()


def _captions(count: int) -> str:
    return "1 caption" if count == 1 else f"{count} captions"


def _told(sentence: str) -> str:
    return str(Markup('<p class="saved">{}</p>').format(sentence))


def _sizes(report: Report) -> Markup:
    """How many images of what sizes there are, and what share of the steps each bucket gets."""
    rows = [("Images", f"{report.images}, {report.captions} with a caption")]
    if report.repeats != report.images:
        rows.append(("With repeats", str(report.repeats)))
    if report.smallest and report.median and report.largest:
        sides = (f"{w} × {h}" for w, h in (report.smallest, report.median, report.largest))
        rows.append(("Smallest, median, largest", ", ".join(sides)))
    rows.append(("In all", parts.size(report.bytes)))
    for bucket in report.buckets:
        number = "1 image" if bucket.images == 1 else f"{bucket.images} images"
        rows.append(
            (
                f"Trained at {bucket.width} × {bucket.height}",
                f"{number}, {bucket.share:.1%} of steps",
            )
        )
    return parts.facts_list(rows)


def _finding(dataset: str, finding: Finding) -> Markup:
    links = Markup(", ").join(
        Markup('<a href="/datasets?{}">{}</a>').format(
            urlencode({"dataset": dataset, "image": file}), file
        )
        for file in finding.files[:_FILES_SHOWN]
    )
    further = len(finding.files) - _FILES_SHOWN
    more = f" and {further} more" if further > 0 else ""
    return Markup('<ul class="notices {}"><li>{} {} <span>{}{}</span></li></ul>').format(
        _TONES[finding.severity], finding.message, finding.fix, links, more
    )
