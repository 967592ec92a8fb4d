"""The bases that pages may name: shipped, on the hub, or put into the data directory by hand.

A page never names a path: whoever reaches the page would read the server's disk with it.
"""

from __future__ import annotations

from pathlib import Path

from trainer.errors import BaseModelError
from trainer.model.bases import EMBEDDED, HubBase, resolve
from trainer.presets import PRESETS


class Bases:
    """What `folder` holds (diffusers folders and single files), and what the presets name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def choices(self) -> list[tuple[str, str]]:
        """Titles and references, the embedded base first."""
        presets = [str(preset.values["base.model"]) for preset in PRESETS.values()]
        own = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        local = [(path.name, str(path)) for path in own if not path.name.startswith(".")]
        return [(_title(name), name) for name in dict.fromkeys(presets)] + local

    def check(self, reference: str) -> str:
        """The reference itself, if a page may name it.

        Raises:
            BaseModelError: if it is neither known nor a hub id.
        """
        if reference in [known for _, known in self.choices()]:
            return reference
        # A relative path may look like a hub id; it is one only if there is no such folder here.
        if not Path(reference).is_absolute() and isinstance(resolve(reference), HubBase):
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


def _title(reference: str) -> str:
    return "Embedded base (ships with LoRA Atelier)" if reference == EMBEDDED else reference
