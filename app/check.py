"""What is worth knowing before a training starts: plain counts, and warnings about the dataset."""

from __future__ import annotations

from dataclasses import dataclass

from app.datasets import Dataset
from trainer.settings import Settings

_FEW_IMAGES = 5


@dataclass(frozen=True)
class Check:
    """Facts as (name, value), and sentences that do not forbid starting."""

    facts: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]


def check(dataset: Dataset, settings: Settings) -> Check:
    """A look at a dataset and settings together."""
    images = len(dataset.images)
    training = settings.training
    seen = training.steps * training.batch_size * training.gradient_accumulation
    facts = [
        ("Images", str(images)),
        ("Steps", f"{training.steps:,}".replace(",", " ")),
        ("Each image is seen", f"about {max(1, round(seen / images))} times" if images else "–"),
        ("Samples", f"{len(settings.samples.prompts)} every {settings.samples.every_steps} steps"),
    ]
    return Check(tuple(facts), tuple(_warnings(dataset, settings)))


def _warnings(dataset: Dataset, settings: Settings) -> list[str]:
    found = list(dataset.notices)
    if 0 < len(dataset.images) < _FEW_IMAGES:
        found.append(f"Only {len(dataset.images)} images: ten to thirty give better results.")
    if dataset.without_caption:
        found.append(f"{dataset.without_caption} images have no caption.")
    if not settings.samples.prompts:
        found.append("No sample prompts: you will see the loss, but no images while it trains.")
    return found
