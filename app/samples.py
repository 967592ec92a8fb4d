"""The datasets that ship with the project, and how one of them becomes a person's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import trainer
from app.datasets import Datasets
from trainer.data.dataset import list_folder
from trainer.data.importing import import_files
from trainer.presets import Goal

FOLDER = Path(trainer.__file__).resolve().parent.parent / "samples"
ORDINARY = "ordinary"
_SHOWN_IMAGES = 6


@dataclass(frozen=True)
class Sample:
    """A shipped dataset: what it shows, and the goal of the preset that fits it."""

    name: str
    goal: Goal
    title: str
    lead: str

    @property
    def folder(self) -> Path:
        return FOLDER / self.name

    def images(self) -> list[tuple[str, str]]:
        """Address and caption of a few of its images."""
        entries = list_folder(self.folder).entries[:_SHOWN_IMAGES]
        return [(f"/media/samples/{self.name}/{e.image.name}", e.caption) for e in entries]


_ALL = (
    Sample("character", "character", "a character", "Pip, a creature the base has never seen."),
    Sample("object", "object", "an object", "Tib, a teapot of its own kind."),
    Sample("style", "style", "a style", "Many subjects, all drawn in the vex style."),
)


def shipped() -> list[Sample]:
    """The samples that are there; an installed package without the repository has none."""
    return [sample for sample in _ALL if sample.folder.is_dir()]


def take(sample: Sample, datasets: Datasets) -> str:
    """Copies a sample into the datasets, unless it is there, and returns where to go on: training
    it beside ordinary pictures, or else what it teaches would spread to everything."""
    query = {
        "dataset": _taken(sample.name, datasets),
        "preset": f"embedded-{sample.goal}",
        "ordinary": _taken(ORDINARY, datasets),
    }
    return "/train?" + urlencode(query)


def _taken(shipped_name: str, datasets: Datasets) -> str:
    name = f"sample-{shipped_name}"
    if name not in datasets.names():
        folder = FOLDER / shipped_name
        files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        datasets.create(name)
        import_files(files, [file.name for file in files], datasets.path(name))
    return name
