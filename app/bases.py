"""The bases that pages may name: shipped, on the hub, or put into the data directory by hand.

A page never names a path: whoever reaches the page would read the server's disk with it.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from trainer.errors import BaseModelError
from trainer.model.bases import EMBEDDED, is_on_hub, resolve
from trainer.model.describe import describe
from trainer.presets import PRESETS


class Bases:
    """What `folder` holds (diffusers folders and single files), and what the presets name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def choices(self) -> list[tuple[str, str]]:
        """Titles and references, the embedded base first; what is no base is left out."""
        presets = [str(preset.values["base.model"]) for preset in PRESETS.values()]
        titled = [(_title(name), name) for name in dict.fromkeys(presets)]
        for path in self._own():
            try:
                titled.append((f"{path.name} ({_described(path)})", str(path)))
            except BaseModelError:  # said in full to whoever asks for it, see `check`
                continue
        return titled

    def check(self, reference: str) -> str:
        """The reference as the trainer takes it, if a page may name it. What lies in the folder
        may be given by its name alone.

        Raises:
            BaseModelError: if it is neither known nor a hub id, or is no base.
        """
        for path in self._own():
            if reference in (path.name, str(path)):
                _described(path)
                return str(path)
        if reference in [known for _, known in self.choices()]:
            return reference
        # A relative path may look like a hub id; it is one only if there is no such folder here.
        if not Path(reference).is_absolute() and is_on_hub(reference):
            return reference
        raise BaseModelError(
            f"{reference} is not a base that the web app may open.",
            f"Put a diffusers folder or a .safetensors file into {self.folder}, or give a hub id.",
        )

    def allows(self, reference: str | None) -> bool:
        """Whether a page may name this reference."""
        try:
            return bool(reference) and self.check(str(reference)) == reference
        except BaseModelError:
            return False

    def _own(self) -> list[Path]:
        own = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        return [path for path in own if not path.name.startswith(".")]


def _title(reference: str) -> str:
    return "Embedded base (ships with LoRA Atelier)" if reference == EMBEDDED else reference


def _described(path: Path) -> str:
    """What the folder or file is, in words. Raises BaseModelError if it is no base."""
    try:
        status = path.stat()
    except OSError as error:
        raise BaseModelError(f"{path} cannot be read: {error.strerror}.") from None
    return _remembered(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=256)
def _remembered(path: Path, changed: int, size: int) -> str:
    resolve(str(path))  # which says what a page cannot open, such as a pickle
    return str(describe(path))
