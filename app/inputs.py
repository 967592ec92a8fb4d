"""Pictures that people give to draw with: masks, and pictures to begin from.

Each is decoded and written anew under a name made from its pixels, so that the same picture is the
same file, and a drawing can be repeated after the upload is gone.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from PIL import Image

from trainer.data.images import open_image, open_mask
from trainer.files import write_atomically


class Inputs:
    """The pictures in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def take(self, upload: str, mask: bool = False) -> Path:
        """The kept copy of an upload; a mask is in greys, and black where it is transparent.

        Raises:
            DatasetError: if it is no image, or too large a one.
        """
        buffer = io.BytesIO()
        opened = open_mask(Path(upload)) if mask else open_image(Path(upload))
        opened.save(buffer, "PNG")
        content = buffer.getvalue()
        file = self.folder / f"{hashlib.sha256(content).hexdigest()[:32]}.png"
        if not file.exists():
            write_atomically(file, content)
        return file

    def shown(self, file: Path | None) -> Image.Image | None:
        """The picture as a page shows it, if it is one of ours and still there."""
        if file is None or file.parent != self.folder or not file.is_file():
            return None
        with Image.open(file) as image:
            image.load()
            return image
