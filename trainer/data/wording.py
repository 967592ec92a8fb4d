"""Captions as one step sees them: with the trigger, shuffled, with tags or all of it left out."""

from __future__ import annotations

import torch

from trainer.data.captions import has_trigger
from trainer.settings import Dataset


def reworded(caption: str, wanted: Dataset, draws: torch.Generator) -> str:
    """The caption, which has the trigger already, after whatever was asked for has been drawn.

    Tags are what commas separate. The first `keep_tags` of them stay where they are; so does a
    trigger that has been put in front, which is never dropped.
    """
    whole, *_ = torch.rand(1, generator=draws).tolist()
    if whole < wanted.caption_dropout:
        return ""
    if not (wanted.shuffle_tags or wanted.tag_dropout):
        return caption
    tags = [tag for tag in (part.strip() for part in caption.split(",")) if tag]
    trigger = wanted.trigger
    leads = bool(tags and trigger and tags[0].lower() == trigger.lower())
    kept = max(wanted.keep_tags, int(leads))
    first, others = tags[:kept], tags[kept:]
    drawn = torch.rand(len(others), generator=draws).tolist()
    others = [
        tag
        for tag, chance in zip(others, drawn, strict=True)
        if chance >= wanted.tag_dropout or (trigger and has_trigger(tag, trigger))
    ]
    if wanted.shuffle_tags:
        others = [others[n] for n in torch.randperm(len(others), generator=draws).tolist()]
    return ", ".join((*first, *others))


def is_fixed(wanted: Dataset) -> bool:
    """Whether a caption is always read alike, but for being dropped as a whole."""
    return not (wanted.shuffle_tags or wanted.tag_dropout)
