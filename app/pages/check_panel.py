"""The check panel beside the training form: what it says, as markup."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from app import check, parts
from app.datasets import Dataset
from trainer.data.findings import Finding
from trainer.settings import Settings

_TONES = {"error": "bad", "warning": "warn"}


def facts(dataset: Dataset, settings: Settings) -> Markup:
    """Counts, and what is to be said about the whole.

    Raises:
        UserError: if there is no such base, or a setting names layers that it lacks.
    """
    counts = parts.facts_list(check.facts(dataset, settings))
    return counts + parts.notices(check.warnings(dataset, settings))


def changed(settings: Sequence[tuple[str, str, str]]) -> Markup:
    """What differs from the preset: label, value and the preset's value of each setting."""
    if not settings:
        return Markup("")
    lines = Markup("").join(
        Markup("<li>{}: <b>{}</b> instead of {}</li>").format(*line) for line in settings
    )
    return Markup('<div class="changed"><p>Changed from the preset</p><ul>{}</ul></div>').format(
        lines
    )


def examined(dataset: Dataset, settings: Settings) -> tuple[Finding, ...]:
    """What the report finds in a dataset as these settings use it."""
    wanted = settings.dataset
    return check.looked_over(
        dataset, wanted.resolution, wanted.trigger, settings.base.model, wanted.max_tokens
    ).findings


def findings(found: Sequence[Finding]) -> Markup:
    """Errors and warnings; notes only matter to who looks after the dataset."""
    return Markup("").join(
        parts.notices([f"{finding.message} {finding.fix}".strip()], _TONES[finding.severity])
        for finding in found
        if finding.severity in _TONES
    )
