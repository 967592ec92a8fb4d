"""What a base is, in a few words, without loading it. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.errors import BaseModelError
from trainer.model.bases import (
    Family,
    FileBase,
    FolderBase,
    HubBase,
    family_of,
    read_config,
    resolve,
)
from trainer.model.other_files import UNET_INPUTS
from trainer.model.single_file import read_single_file


@dataclass(frozen=True)
class Description:
    """A base as its files describe it; settings may override all but the family."""

    family: Family
    prediction_type: str
    zero_terminal_snr: bool

    def __str__(self) -> str:
        """Such as `SDXL, v-prediction, zero terminal SNR`; predicting noise goes without saying."""
        words = [self.family.full_name]
        if self.prediction_type != "epsilon":
            words.append(self.prediction_type.replace("_", "-"))
        if self.zero_terminal_snr:
            words.append("zero terminal SNR")
        return ", ".join(words)


def describe(place: Path) -> Description:
    """What the diffusers folder or single file at `place` is.

    Raises:
        BaseModelError: if it is broken, or not a base that can be trained.
    """
    if place.is_file():
        file = read_single_file(place)
        return Description(file.family, file.prediction_type, file.zero_terminal_snr)
    family = family_of(place)
    channels = read_config(place / "unet" / "config.json").get("in_channels", 4)
    if channels != 4:
        what = UNET_INPUTS.get(channels, f"a model that reads {channels} channels")
        raise BaseModelError(f"{place} is {what}.", "Give a base that draws from text alone.")
    schedule = read_config(place / "scheduler" / "scheduler_config.json")
    return Description(
        family,
        str(schedule.get("prediction_type", "epsilon")),
        bool(schedule.get("rescale_betas_zero_snr")),
    )


def in_words(reference: str) -> str:
    """What a reference names. Raises BaseModelError as `describe` and `resolve` do."""
    match resolve(reference):
        case FolderBase(path) | FileBase(path):
            return str(describe(path))
        case HubBase():
            return "on the hub, downloaded when it is first used"
