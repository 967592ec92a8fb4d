"""What is worth knowing before a training starts: plain counts, and findings about the dataset."""

from __future__ import annotations

from functools import lru_cache

from app.datasets import Dataset
from trainer.data import report, tokens
from trainer.data.findings import Finding
from trainer.settings import Settings

_FEW_IMAGES = 5


def facts(dataset: Dataset, settings: Settings) -> list[tuple[str, str]]:
    """Names and values, from counting alone."""
    images = len(dataset.images)
    training = settings.training
    seen = training.steps * training.batch_size * training.gradient_accumulation
    prompts = len(settings.samples.prompts)
    return [
        ("Images", str(images)),
        ("Steps", f"{training.steps:,}".replace(",", " ")),
        ("Each image is seen", f"about {max(1, round(seen / images))} times" if images else "–"),
        ("Samples", f"{prompts} every {settings.samples.every_steps} steps" if prompts else "none"),
    ]


def warnings(dataset: Dataset, settings: Settings) -> list[str]:
    """Sentences about the whole that do not forbid starting."""
    found = []
    if 0 < len(dataset.images) < _FEW_IMAGES:
        found.append(f"Only {len(dataset.images)} images: ten to thirty give better results.")
    if not settings.samples.prompts:
        found.append("No sample prompts: you will see the loss, but no images while it trains.")
    return found


@lru_cache(maxsize=16)
def findings(
    dataset: Dataset, resolution: int, trigger: str | None, base: str
) -> tuple[Finding, ...]:
    """What the report on the dataset finds. Every image is opened, once for each state of it.

    Raises:
        DatasetError: if the folder cannot be read.
    """
    tokenizer = tokens.for_base(base)
    return report.check(dataset.folder, resolution, trigger, tokenizer).findings
