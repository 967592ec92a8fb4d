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
from trainer.errors import AtelierError
from trainer.files import write_atomically
from trainer.preview.grid import save_png, sheet

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


def routes(workshop: Workshop) -> APIRouter:
    """The addresses under /media."""
    router = APIRouter(prefix="/media")

    @router.get("/datasets/{dataset}/{image:path}")
    def of_dataset(dataset: str, image: str, side: int = 256) -> Response:
        if side not in SIDES:
            raise HTTPException(404)
        try:
            content = thumbnail(workshop.datasets, workshop.data / "thumbs", dataset, image, side)
        except AtelierError as error:
            raise HTTPException(404, error.what) from None
        return Response(content, media_type="image/webp", headers=_FOREVER)

    @router.get("/samples/{sample}/{image}")
    def of_sample(sample: str, image: str) -> Response:
        for shipped in samples.shipped():
            for file in shipped.folder.glob("*.png") if shipped.name == sample else ():
                if file.name == image:
                    return _png(file)
        raise HTTPException(404)

    @router.get("/runs/{id}/samples/{step}/{number}.png")
    def of_run(id: str, step: str, number: int) -> Response:
        if id not in workshop.jobs.ids() or not re.fullmatch(r"step-\d+", step):
            raise HTTPException(404)
        file = workshop.jobs.folder / id / "samples" / step / f"{number:02}.png"
        return _png(file)

    @router.get("/previews/{key}/sheet.png")
    def labelled_strip(key: str) -> Response:
        home = workshop.previews.folder / key
        if not _KEY.fullmatch(key) or not (home / "request.json").exists():
            raise HTTPException(404)
        file = home / "sheet.png"
        if not file.exists():
            wanted = workshop.previews.request(key)
            images = [Image.open(home / f"{n:02}.png") for n in range(len(wanted.strip))]
            labels = [f"{strength:g}" for strength in wanted.strip]
            save_png(sheet([images], labels, [wanted.prompt], "strength"), file)
        return FileResponse(file, media_type="image/png", filename="strengths.png")

    @router.get("/previews/{key}/{number}.png")
    def of_preview(key: str, number: int) -> Response:
        if not _KEY.fullmatch(key):
            raise HTTPException(404)
        return _png(workshop.previews.folder / key / f"{number:02}.png")

    @router.get("/adapters/{ref:path}")
    def adapter(ref: str) -> Response:
        try:
            entry = workshop.library.find(ref)
        except AtelierError as error:
            raise HTTPException(404, error.what) from None
        name = re.sub(r"[^\w .()+-]", "_", entry.title).strip(" .") or "adapter"
        return FileResponse(
            entry.file,
            media_type="application/octet-stream",
            filename=f"{name}.safetensors",
            headers={"Cache-Control": "no-cache"},
        )

    return router


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


def _png(file: Path) -> Response:
    if not file.is_file():
        raise HTTPException(404)
    return FileResponse(file, media_type="image/png", headers=_FOREVER)
