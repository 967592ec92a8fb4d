"""Regularisation images: ordinary pictures of a class, from a folder or drawn by the base.

Prior preservation (Ruiz et al., 2022, arXiv:2208.12242, §3.3) lets the adapter learn from what the
base draws for the class as well, so that not every person becomes the one of the dataset.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from trainer.data.dataset import Example, scan
from trainer.files import cache_folder, write_atomically
from trainer.model.stable_diffusion import BaseModel
from trainer.preview.render import Picture, render
from trainer.settings import Settings

Progress = Callable[[str, int, int], None]  # stage in words, parts done, parts in all

# Changes when the way from a prompt to an image does.
_FORMAT = 1
_STEPS, _GUIDANCE = 30, 7.0


def examples(model: BaseModel, wanted: Settings, progress: Progress) -> tuple[Example, ...]:
    """The regularisation images of a run; those that are to be drawn and are not there, are drawn.

    Raises:
        DatasetError: if the folder of them cannot be used.
    """
    dataset = wanted.dataset
    caption = dataset.class_prompt or ""
    if dataset.class_folder is not None:
        return scan(dataset.class_folder, cache_folder(), caption=caption).examples
    if dataset.class_prompt is not None:
        files = drawn(model, wanted, progress)
        return scan(files[0].parent, cache_folder(), caption=caption).examples[: len(files)]
    return ()


def drawn(model: BaseModel, wanted: Settings, progress: Progress) -> list[Path]:
    """Draws the class prompt as often as asked for, image n from seed n, into a folder named by the
    hash of all that decides how they look; images that are there stay."""
    dataset = wanted.dataset
    side = dataset.resolution // model.downscale * model.downscale
    picture = Picture(
        dataset.class_prompt or "",
        steps=_STEPS,
        guidance=_GUIDANCE,
        width=side,
        height=side,
    )
    folder = cache_folder() / "class-images" / _name(model, wanted, picture)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:05d}.png" for number in range(dataset.class_images)]
    missing = [number for number, file in enumerate(files) if not file.exists()]
    done = len(files) - len(missing)
    for number in missing:
        progress("Drawing regularisation images", done, len(files))
        content = io.BytesIO()
        render(model, replace(picture, seed=number))[0].save(content, "PNG")
        write_atomically(files[number], content.getvalue())
        done += 1
    progress("Drawing regularisation images", done, len(files))
    return files


def _name(model: BaseModel, wanted: Settings, picture: Picture) -> str:
    everything = [
        _FORMAT, model.fingerprint, model.vae_fingerprint, model.text_fingerprint,
        dict(model.scheduler_config), str(model.dtype), wanted.base.quantization, picture.prompt,
        picture.steps, picture.guidance, picture.width, picture.height,
    ]  # fmt: skip
    content = json.dumps(everything, sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:32]
