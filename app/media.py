"""Images and downloads by their names. Every name is looked up in a listing before a file opens."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from urllib.parse import quote

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse, Response
from PIL import Image

from app import samples
from app.datasets import Datasets
from app.workshop import Workshop
from trainer.data.images import open_image
from trainer.errors import AtelierError, UserError
from trainer.files import write_atomically
from trainer.preview.grid import save_png, sheet
from trainer.preview.recipe import Layout, read_recipe

# The addresses below carry what their content depends on, so browsers need never ask again.
_FOREVER = {"Cache-Control": "private, max-age=31536000, immutable"}
_KEY = re.compile(r"[0-9a-f]{32}")
_THUMBNAIL_QUALITY = 82
SIDES = (256, 768)


def dataset_image(dataset: str, image: str, changed: int, side: int = 256) -> str:
    """Address of an image of a dataset, scaled down to at most `side` pixels."""
    return f"/media/datasets/{quote(dataset)}/{quote(image)}?side={side}&v={changed}"


def run_sample(id: str, file: str, attempt: int) -> str:
    """Address of a sample image; `file` is as its event has it."""
    return f"/media/runs/{quote(id)}/{quote(file)}?v={attempt}"


def drawing(file: Path) -> str:
    """Address of a drawn preview."""
    return f"/media/previews/{file.parent.name}/{file.name}"


def download(ref: str) -> str:
    """Address of an adapter's file."""
    return f"/media/adapters/{quote(ref)}"


def comparison(key: str) -> str:
    """Address of the picture of a comparison."""
    return f"/media/comparisons/{key}.png"


def routes(workshop: Workshop) -> APIRouter:
    """The addresses under /media."""
    files = _Files(workshop)
    router = APIRouter(prefix="/media")
    for path, answer in (
        ("/datasets/{dataset}/{image:path}", files.of_dataset),
        ("/samples/{sample}/{image}", files.of_sample),
        ("/runs/{id}/samples/{step}/{number}.png", files.of_run),
        ("/previews/{key}/sheet.png", files.labelled_strip),
        ("/previews/{key}/{number}.png", files.of_preview),
        ("/comparisons/{key}.png", files.comparison),
        ("/adapters/{ref:path}", files.adapter),
    ):
        router.add_api_route(path, answer, response_model=None)
    return router


class _Files:
    """Answers with files of a workshop, or with 404."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop

    def of_dataset(self, dataset: str, image: str, side: int = SIDES[0]) -> Response:
        if side not in SIDES:
            raise HTTPException(404)
        try:
            cache = self._workshop.data / "thumbs"
            content = thumbnail(self._workshop.datasets, cache, dataset, image, side)
        except AtelierError as error:
            raise HTTPException(404, error.what) from None
        except FileNotFoundError:  # it was removed at this instant
            raise HTTPException(404) from None
        return Response(content, media_type="image/webp", headers=_FOREVER)

    def of_sample(self, sample: str, image: str) -> Response:
        for shipped in samples.shipped():
            if shipped.name == sample:
                known = {file.name: file for file in shipped.folder.glob("*.png")}
                return _png(known.get(image))
        raise HTTPException(404)

    def of_run(self, id: str, step: str, number: int) -> Response:
        if id not in self._workshop.jobs.ids() or not re.fullmatch(r"step-\d+", step):
            raise HTTPException(404)
        return _png(self._workshop.jobs.folder / id / "samples" / step / f"{number:02}.png")

    def of_preview(self, key: str, number: int) -> Response:
        return _png(self._drawing(key) / f"{number:02}.png")

    def labelled_strip(self, key: str) -> Response:
        home = self._drawing(key)
        file = home / "sheet.png"
        if not file.exists():
            wanted = self._workshop.previews.request(key)
            images = [Image.open(home / f"{n:02}.png") for n in range(len(wanted.strip))]
            labels = tuple(f"{strength:g}" for strength in wanted.strip)
            layout = Layout(columns=labels, rows=(wanted.prompt,), title="strength")
            page = sheet([images], layout.columns, layout.rows, layout.title)
            save_png(page, file, recipe_of_all(home / "00.png", layout, page.size))
        return FileResponse(file, media_type="image/png", filename="strengths.png")

    def comparison(self, key: str) -> Response:
        return _png(self._workshop.workbench.picture(key) if _KEY.fullmatch(key) else None)

    def adapter(self, ref: str) -> Response:
        try:
            entry = self._workshop.library.find(ref)
        except AtelierError as error:
            raise HTTPException(404, error.what) from None
        name = re.sub(r"[^\w .()+-]", "_", entry.title).strip(" .") or "adapter"
        return FileResponse(
            entry.file,
            media_type="application/octet-stream",
            filename=f"{name}.safetensors",
            headers={"Cache-Control": "no-cache"},
        )

    def _drawing(self, key: str) -> Path:
        home = self._workshop.previews.folder / key
        if not _KEY.fullmatch(key) or not (home / "request.json").exists():
            raise HTTPException(404)
        return home


def recipe_of_all(image: Path, layout: Layout, size: tuple[int, int]) -> dict[str, str]:
    """What a sheet of that size carries: the recipe in its first image, for all of them."""
    try:
        recipe = read_recipe(image)
    except UserError:
        return {}  # it was drawn privately
    return recipe.model_copy(update={"image": None, "layout": layout}).texts(*size)


def thumbnail(datasets: Datasets, cache: Path, dataset: str, image: str, side: int) -> bytes:
    """An image of a dataset as WebP, decoded and encoded anew, and kept until the image changes.

    Raises:
        DatasetError: if there is no such image, or it is broken.
    """
    source = datasets.image(dataset, image)
    identity = f"{source}\0{source.stat().st_mtime_ns}\0{side}"
    kept = cache / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.webp"
    if kept.exists():
        return kept.read_bytes()
    picture = open_image(source)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=_THUMBNAIL_QUALITY)
    write_atomically(kept, buffer.getvalue())
    return buffer.getvalue()


def _png(file: Path | None) -> Response:
    if file is None or not file.is_file():
        raise HTTPException(404)
    return FileResponse(file, media_type="image/png", headers=_FOREVER)
