"""What is worth knowing before a training starts: plain counts, and findings about the dataset."""

from __future__ import annotations

from functools import lru_cache

from app import parts
from app.datasets import Dataset
from trainer.adapter.footprint import Footprint, footprint
from trainer.data import report, tokens
from trainer.data.report import Report
from trainer.model.shapes import outline
from trainer.settings import Dataset as DatasetSettings
from trainer.settings import Settings

_FEW_IMAGES = 5


def facts(dataset: Dataset, settings: Settings) -> list[tuple[str, str]]:
    """Names and values, from counting alone."""
    images = len(dataset.images)
    training = settings.training
    seen = training.steps * training.batch_size * training.gradient_accumulation
    prompts = len(settings.samples.prompts)
    sized = size(settings)
    trains = (
        [
            (
                "Parameters",
                f"{sized.parameters:,} ({sized.share:.2%} of the base)".replace(",", " "),
            ),
            ("File to come", parts.size(sized.file_bytes)),
        ]
        if sized
        else [("File to come", "known once the base is here")]
    )
    return [
        ("Images", str(images)),
        ("Steps", f"{training.steps:,}".replace(",", " ")),
        ("Each image is seen", f"about {max(1, round(seen / images))} times" if images else "–"),
        ("Samples", f"{prompts} every {settings.samples.every_steps} steps" if prompts else "none"),
        *trains,
    ]


def size(settings: Settings) -> Footprint | None:
    """What would be trained; None if the base is not here and is none of the well-known.

    Raises:
        UserError: if there is no such base, or a setting names layers that it lacks.
    """
    base = outline(settings.base.model)
    return footprint(settings, base) if base else None


def warnings(dataset: Dataset, settings: Settings) -> list[str]:
    """Sentences about the whole that do not forbid starting."""
    found = []
    if 0 < len(dataset.images) < _FEW_IMAGES:
        found.append(f"Only {len(dataset.images)} images: ten to thirty give better results.")
    if not settings.samples.prompts:
        found.append("No sample prompts: you will see the loss, but no images while it trains.")
    return found


@lru_cache(maxsize=16)
def looked_over(
    dataset: Dataset, resolution: int, trigger: str | None, base: str, max_tokens: int
) -> Report:
    """The report on the dataset. Every image is opened, once for each state of it.

    Raises:
        DatasetError: if the folder cannot be read.
    """
    tokenizer = tokens.for_base(base)
    wanted = DatasetSettings(resolution=resolution, trigger=trigger, max_tokens=max_tokens)
    return report.check(dataset.folder, wanted, tokenizer)
