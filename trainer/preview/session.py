"""A base held in memory with whatever adapters the last image used: what preview commands share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from pathlib import Path

from PIL import Image

from trainer.adapter.adapter import Adapter, load
from trainer.adapter.attach import Attachment, Parts, attach, slots
from trainer.adapter.base_weights import read_weights
from trainer.adapter.block_rules import weights_of
from trainer.adapter.kinds import DoRA
from trainer.errors import AdapterError
from trainer.model.bases import Family
from trainer.model.load import load as load_base
from trainer.model.quantise import dense_weight
from trainer.model.stable_diffusion import BaseModel
from trainer.preview.render import PartStrength, Picture, render
from trainer.preview.request import Drawing, Strength
from trainer.settings import Base


class Session:
    """Draws images on one base. Adapters stay attached until others are asked for."""

    def __init__(self, base: Base) -> None:
        self.model: BaseModel = load_base(base)
        self._attachment: Attachment | None = None
        self._attached: tuple[tuple[Path, float], ...] = ()
        self._layers: tuple[Collection[str], ...] = ()  # of each adapter, by module path

    def draw(
        self,
        wanted: Drawing,
        on_step: Callable[[int, int], None] = lambda done, total: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> list[Image.Image]:
        """One image for each factor of the strip; see `render`. `wanted.base` is not looked at.

        Raises:
            AdapterError: if a file is broken or made for another base; nothing has changed then.
            UserError: if block weights cannot be read, or fit no layer.
            Cancelled: when `cancelled()` becomes true.
        """
        adapters = wanted.adapters
        picture = Picture(**{one.name: getattr(wanted, one.name) for one in fields(Picture)})
        self._use([adapter.file for adapter in adapters])
        strengths = {
            _name(index): PartStrength(
                adapter.unet, adapter.in_text, adapter.schedule, adapter.mask, blocks
            )
            for index, (adapter, blocks) in enumerate(
                zip(adapters, self._block_factors(adapters), strict=True)
            )
        }
        return render(
            self.model, picture, self._attachment, strengths, wanted.strip, on_step, cancelled
        )

    def _block_factors(self, adapters: Sequence[Strength]) -> list[dict[str, float]]:
        """The factor of every layer that block weights concern, for each attached adapter."""
        rules = [adapter.blocks for adapter in adapters]
        weights = weights_of(rules, self._layers, self.model.family)
        return [
            {path: weight(path) for path in layers} if own else {}
            for own, weight, layers in zip(rules, weights, self._layers, strict=True)
        ]

    def _use(self, files: Sequence[Path]) -> None:
        wanted = tuple((file, _changed(file)) for file in files)
        if wanted == self._attached:
            return
        adapters = {
            _name(index): load_for(self.model.family, self.model.place, file)
            for index, file in enumerate(files)
        }
        if self._attachment is not None:
            self._attachment.detach()
        self._attachment, self._attached, self._layers = None, (), ()
        if adapters:
            self._attachment = attach(self.model.parts, adapters)
            self._attached = wanted
            self._layers = tuple(adapter.keys() for adapter in adapters.values())


def load_for(family: Family, base: Path | Parts, file: Path) -> Adapter:
    """The adapter in a file as plain factors, if it is for this family. What a DoRA adapter does
    depends on the weights of `base`: in its files, or in memory, where they may be packed.

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
    if isinstance(base, Path):
        weights = read_weights(base, depends)
    else:
        places = slots(base) if depends else {}
        weights = {path: dense_weight(places[path].layer) for path in depends if path in places}
    return loaded.plain(base_weights=weights)[0]


def _name(index: int) -> str:
    return f"adapter {index + 1}"


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        raise AdapterError(f"There is no adapter file {file}.", "Check the path.") from None
