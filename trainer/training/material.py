"""What a run learns from: the images of its dataset and its regularisation images, encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.data.batches import sizes_of
from trainer.data.captions import with_trigger
from trainer.data.dataset import Example, Scan
from trainer.data.latents import Encoded, Encoder
from trainer.data.store import DiskStore, MemoryStore, Store
from trainer.data.wording import is_fixed
from trainer.errors import DatasetError
from trainer.files import cache_folder
from trainer.model.stable_diffusion import BaseModel
from trainer.settings import Settings
from trainer.training import prior
from trainer.training.conditions import Conditions
from trainer.training.prior import Progress


@dataclass(frozen=True)
class Material:
    """The images of the dataset, those that stand for its class, which may be none, and what reads
    their captions. `unreadable` are those that vanished or broke since they were looked at."""

    images: list[Encoded]
    prior: list[Encoded]
    conditions: Conditions
    unreadable: dict[Path, DatasetError]


def gather(
    model: BaseModel,
    wanted: Settings,
    scanned: Scan,
    progress: Progress,
    text_encoders_learn: bool,
) -> Material:
    """Draws regularisation images if that is asked for, and encodes all images that are not in the
    cache, and captions unless the text encoders are to learn. The model must not have an adapter
    yet.

    Raises:
        DatasetError: if no image can be used.
    """
    dataset = wanted.dataset
    store = store_of(wanted, "latents")
    encoder = Encoder(model, dataset, store)
    class_images = prior.examples(model, wanted, progress)
    trigger, resolution = dataset.trigger, dataset.resolution

    unreadable: dict[Path, DatasetError] = {}

    def encoded(examples: Sequence[Example], stage: str, word: str | None) -> list[Encoded]:
        sizes = sizes_of(examples, resolution)
        wrong = encoder.encode(examples, sizes, lambda done: progress(stage, done, len(examples)))
        if len(wrong) == len(examples):
            raise next(iter(wrong.values()))
        unreadable.update(wrong)
        return [
            Encoded(example, with_trigger(example.caption, word), size, encoder)
            for example, size in zip(examples, sizes, strict=True)
            if example.image not in wrong
        ]

    images = encoded(scanned.examples, "Encoding images", trigger)
    others = encoded(class_images, "Encoding regularisation images", None) if class_images else []
    store.tidy()
    model.release_vae()
    if text_encoders_learn:
        conditions = Conditions(model, wanted.dataset.max_tokens // 75)
    else:
        conditions = _conditions(model, wanted, images + others, progress)
    return Material(images, others, conditions, unreadable)


def _conditions(
    model: BaseModel, wanted: Settings, images: Sequence[Encoded], progress: Progress
) -> Conditions:
    """What reads the captions with frozen text encoders: they are encoded here, but for those that
    are reworded all the time."""
    store = store_of(wanted, "captions")
    conditions = Conditions(model, wanted.dataset.max_tokens // 75, store)
    captions = sorted({"", *(image.caption for image in images)})
    total = len(captions)
    conditions.prepare(captions, lambda done: progress("Encoding captions", done, total))
    store.tidy()
    if is_fixed(wanted.dataset):
        model.release_text_encoders()
    return conditions


def store_of(wanted: Settings, kind: str) -> Store:
    """Where entries of a kind are kept."""
    if wanted.dataset.cache == "memory":
        return MemoryStore()
    return DiskStore(cache_folder() / kind)
