"""A base held in memory with whatever adapters the last image used: what preview commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from trainer.adapter.adapter import Adapter, load
from trainer.adapter.attach import Attachment, attach
from trainer.adapter.base_weights import read_weights
from trainer.adapter.lycoris import DoRA
from trainer.errors import AdapterError
from trainer.model.bases import Family
from trainer.model.load import load as load_base
from trainer.model.stable_diffusion import BaseModel
from trainer.preview.render import PartStrength, Picture, render
from trainer.preview.request import Drawing
from trainer.settings import Base


class Session:
    """Draws images on one base. Adapters stay attached until others are asked for."""

    def __init__(self, base: Base) -> None:
        self.model: BaseModel = load_base(base)
        self._attachment: Attachment | None = None
        self._attached: tuple[tuple[Path, float], ...] = ()

    def draw(
        self,
        wanted: Drawing,
        on_step: Callable[[int, int], None] = lambda done, total: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> list[Image.Image]:
        """One image for each factor of the strip; see `render`. `wanted.base` is not looked at.

        Raises:
            AdapterError: if a file is broken or made for another base; nothing has changed then.
            Cancelled: when `cancelled()` becomes true.
        """
        adapters = wanted.adapters
        picture = Picture(
            wanted.prompt,
            wanted.negative_prompt,
            wanted.seed,
            wanted.steps,
            wanted.guidance,
            wanted.width,
            wanted.height,
        )
        self._use([adapter.file for adapter in adapters])
        strengths = {
            _name(index): PartStrength(
                adapter.unet,
                adapter.unet if adapter.text_encoder is None else adapter.text_encoder,
            )
            for index, adapter in enumerate(adapters)
        }
        return render(
            self.model, picture, self._attachment, strengths, wanted.strip, on_step, cancelled
        )

    def _use(self, files: Sequence[Path]) -> None:
        wanted = tuple((file, _changed(file)) for file in files)
        if wanted == self._attached:
            return
        adapters = {
            _name(index): load_for(self.model.family, self.model.folder, file)
            for index, file in enumerate(files)
        }
        if self._attachment is not None:
            self._attachment.detach()
        self._attachment, self._attached = None, ()
        if adapters:
            self._attachment = attach(self.model.parts, adapters)
            self._attached = wanted


def load_for(family: Family, base: Path, file: Path) -> Adapter:
    """The adapter in a file as plain factors, if it is for this family. `base` is the base's
    folder: what a DoRA adapter does depends on the base's weights.

    Raises:
        AdapterError: if it is broken, or made for another family.
    """
    loaded = load(file)
    if loaded.family is not None and loaded.family is not family:
        raise AdapterError(
            f"{file.name} is an adapter for {loaded.family.full_name}, "
            f"but the base is {family.full_name}.",
            f"Use it with a {loaded.family.full_name} base.",
        )
    depends = [path for path, layer in loaded.layers.items() if isinstance(layer, DoRA)]
    return loaded.plain(base_weights=read_weights(base, depends))[0]


def _name(index: int) -> str:
    return f"adapter {index + 1}"


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        raise AdapterError(f"There is no adapter file {file}.", "Check the path.") from None
