"""What an image was drawn from, carried in its PNG: as text that A1111, Forge and Civitai read, and
in full as JSON, from which the image can be drawn again. No torch.

The text is the chunk `parameters`, the JSON the chunk `atelier`. An image from elsewhere is not
trusted: its chunks are walked by hand, with bounds, and what is not a recipe is refused.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trainer.adapter.container import read_container
from trainer.data.names import shown
from trainer.errors import AtelierError, UserError
from trainer.preview.request import Drawing, Strength
from trainer.preview.samplers import KINDS
from trainer.preview.schedule import CONSTANT, Schedule

MAX_BYTES = 8 * 2**20  # of a chunk of text
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MOST_CHUNKS = 100_000


class Used(BaseModel):
    """A file that an image depends on. `hash` is SHA-256 in hex: of an adapter's tensors
    (`sshs_model_hash`, which edits of the metadata do not change), of any other file's bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: Path
    hash: str = Field(pattern=r"^[0-9a-f]{64}$")


class Layout(BaseModel):
    """How the images of a sheet stand, row by row, and what is written beside them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    columns: tuple[str, ...] = Field(min_length=1, max_length=1000)
    rows: tuple[str, ...] = Field(min_length=1, max_length=1000)
    title: str = ""


class Recipe(BaseModel):
    """How to draw an image again: the drawings, and which of their images it is, or None for a
    sheet of all. An image of a strip depends on the strip: other batches round otherwise.

    A sheet without a `layout` has a row for each drawing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    drawings: tuple[Drawing, ...] = Field(min_length=1, max_length=1000)
    image: int | None = Field(default=None, ge=0, le=15)
    layout: Layout | None = None
    adapters: tuple[Used, ...] = Field(default=(), max_length=1000)
    images: tuple[Used, ...] = Field(default=(), max_length=1000)

    @model_validator(mode="after")
    def _has_the_images_that_it_speaks_of(self) -> Self:
        count = sum(len(drawing.strip) for drawing in self.drawings)
        if self.image is not None and self.image >= len(self.drawings[0].strip):
            raise ValueError(f"has no image {self.image}")
        if self.layout and len(self.layout.columns) * len(self.layout.rows) != count:
            raise ValueError(f"lays out other than its {count} images")
        return self

    @property
    def key(self) -> str:
        """A name for the image: the same for the same recipe and the same contents of files."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:32]

    def texts(self, width: int, height: int) -> dict[str, str]:
        """The chunks of text for a PNG of that size in pixels."""
        drawing = self.drawings[0]
        factor = 1.0 if self.image is None else drawing.strip[self.image]
        hashes = {used.file: used.hash for used in self.adapters}
        return {
            "parameters": parameters(drawing, factor, width, height, hashes),
            # ASCII: what is not Latin-1 would make it another kind of chunk.
            "atelier": json.dumps(self.model_dump(mode="json", exclude_defaults=True)),
        }


def recipe_of(
    drawings: Sequence[Drawing], image: int | None = None, layout: Layout | None = None
) -> Recipe:
    """The recipe of one image of a drawing, or of a sheet of all images of several."""
    adapters = {one.file: tensor_hash(one.file) for drawing in drawings for one in drawing.adapters}
    pictures = {file: file_hash(file) for drawing in drawings for file in _pictures(drawing)}
    return Recipe(
        drawings=tuple(drawings),
        image=image,
        layout=layout,
        adapters=tuple(Used(file=file, hash=hash) for file, hash in adapters.items()),
        images=tuple(Used(file=file, hash=hash) for file, hash in pictures.items()),
    )


def read_recipe(path: Path) -> Recipe:
    """The recipe that a PNG carries.

    Raises:
        UserError: if the file is no PNG, carries none, or one that is broken.
    """
    called = shown(path)
    try:
        if not path.is_file():
            raise UserError(f"There is no image {called}.", "Check the path.")
        with path.open("rb") as file:
            text = next(_texts(file, "atelier", called), None)
            file.seek(0)
            told = text is None and any(_texts(file, "parameters", called))
    except OSError as error:
        raise UserError(f"{called} cannot be read: {error.strerror}.") from None
    if told:
        raise UserError(
            f"{called} tells how it was drawn only in A1111's words, which name no file.",
            "It is a sample of a training, or of another program: give what its PNG info lists as "
            "flags.",
        )
    if text is None:
        raise UserError(
            f"{called} carries no recipe.", "It was drawn privately, edited, or made elsewhere."
        )
    try:
        return Recipe.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"])
        raise UserError(
            f"The recipe in {called} is broken: {where or 'it'}: {first['msg'][:200]}.",
            "It cannot be repeated.",
        ) from None


def found_again(recipe: Recipe, among: Sequence[Path] = ()) -> Recipe:
    """The recipe with its files where they are now: in their old place if they are unchanged, else
    whichever file in the folders and files `among` has the same hash. A file that the recipe has no
    hash of was given by hand, and stays.

    Raises:
        UserError: naming an adapter or image that is missing or has changed.
    """
    needed = {file for drawing in recipe.drawings for file in _files_of(drawing)}
    adapters = [used for used in recipe.adapters if used.file in needed]
    images = [used for used in recipe.images if used.file in needed]
    places = {used.file: _place(used, "adapter", ".safetensors", among) for used in adapters}
    places |= {used.file: _place(used, "image", "", among) for used in images}
    drawings = tuple(_moved(drawing, places) for drawing in recipe.drawings)
    return recipe.model_copy(update={"drawings": drawings})


def parameters(
    drawing: Drawing, factor: float, width: int, height: int, hashes: Mapping[Path, str]
) -> str:
    """The generation parameters of an image as A1111 writes and reads them.

    Adapters stand as `<lora:name:strength>` behind the prompt, with the first 12 digits of their
    hashes. What A1111 has no word for (mixing, schedules, blocks, masks) follows under names of our
    own.
    """
    facts: dict[str, object] = {
        "Steps": drawing.steps,
        "Sampler": KINDS[drawing.sampler].name,
        "CFG scale": f"{drawing.guidance:g}",
        "Seed": drawing.seed,
        "Size": f"{width}x{height}",
        "Model": Path(drawing.base).stem if Path(drawing.base).is_absolute() else drawing.base,
        "Denoising strength": f"{drawing.denoise:g}" if drawing.initial_image else None,
        "Clip skip": drawing.clip_skip if drawing.clip_skip > 1 else None,
        "Lora hashes": _listed((one, hashes[one.file][:12]) for one in drawing.adapters),
        "Adapter mixing": _mixing(drawing),
        "Adapter schedules": _listed(
            (one, _words(one.schedule)) for one in drawing.adapters if one.schedule != CONSTANT
        ),
        "Adapter blocks": _listed(
            (one, " ".join(one.blocks)) for one in drawing.adapters if one.blocks
        ),
        "Adapter masks": _listed(
            (one, one.mask.name) for one in drawing.adapters if one.mask is not None
        ),
        "Version": "LoRA Atelier",
    }
    tags = "".join(_tag(one, factor) for one in drawing.adapters)
    lines = [drawing.prompt + tags]
    if drawing.negative_prompt:
        lines.append(f"Negative prompt: {drawing.negative_prompt}")
    lines.append(", ".join(f"{name}: {_quoted(fact)}" for name, fact in facts.items() if fact))
    return "\n".join(lines)


def tensor_hash(adapter: Path) -> str:
    """SHA-256 of an adapter's tensors, in hex. Raises AdapterError if it is none."""
    return _hash_from(adapter, read_container(adapter).start, *_state(adapter))


def file_hash(file: Path) -> str:
    """SHA-256 of a file, in hex. Raises UserError if it is not there, or not a file."""
    if not file.is_file():  # a pipe would never end
        raise UserError(f"There is no image {shown(file)}.", "Check the path.")
    try:
        return _hash_from(file, 0, *_state(file))
    except OSError as error:
        raise UserError(f"{shown(file)} cannot be read: {error.strerror}.") from None


def _state(file: Path) -> tuple[int, ...]:
    status = file.stat()
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size


@lru_cache(maxsize=256)  # the resident worker is asked for the same adapters again and again
def _hash_from(path: Path, start: int, *state: int) -> str:
    with path.open("rb") as file:
        file.seek(start)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _texts(file: BinaryIO, keyword: str, called: str) -> Iterator[bytes]:
    """The contents of a PNG's plain text chunks of that keyword."""
    if file.read(8) != _SIGNATURE:
        raise UserError(f"{called} is not a PNG.", "Give an image that `atelier` drew.")
    mark = keyword.encode() + b"\0"
    for _ in range(_MOST_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head)
        begin = file.read(min(length, len(mark)))
        rest = length - len(begin)
        if kind != b"tEXt" or begin != mark:
            file.seek(rest + 4, 1)
            continue
        if length > MAX_BYTES:
            raise UserError(
                f"The recipe in {called} has {length / 2**20:,.1f} MiB, more than any has.",
                "It cannot be repeated.",
            )
        content, checksum = file.read(rest), file.read(4)
        if struct.pack(">I", zlib.crc32(kind + mark + content)) != checksum:
            raise UserError(f"The recipe in {called} is damaged.", "It cannot be repeated.")
        yield content


def _place(used: Used, what: str, suffix: str, among: Sequence[Path]) -> Path:
    """Where a file is now."""
    hash_of = tensor_hash if what == "adapter" else file_hash

    def same(file: Path) -> bool:
        try:
            return hash_of(file) == used.hash
        except (AtelierError, OSError):
            return False  # broken, or not of this kind, so not the one that is looked for

    if same(used.file):
        return used.file
    for file in sorted(_files(among, suffix), key=lambda file: file.name != used.file.name):
        if same(file):
            return file
    called, digits = shown(used.file), used.hash[:12]
    if used.file.is_file():
        raise UserError(
            f"The {what} {called} has changed since the image was drawn: its hash is not {digits}.",
            "Give the folder of the old one with --among.",
        )
    raise UserError(
        f"The {what} {called} with the hash {digits} is missing.",
        "Give the folder that it is in with --among.",
    )


def _files(among: Iterable[Path], suffix: str) -> Iterator[Path]:
    for place in among:
        if place.is_dir():
            yield from (file for file in place.rglob(f"*{suffix}") if file.is_file())
        elif place.is_file():
            yield place
        else:
            raise UserError(f"There is no file or folder {shown(place)}.", "Check --among.")


def _moved(drawing: Drawing, places: Mapping[Path, Path]) -> Drawing:
    """The drawing with its files in their new places; those without one stay."""

    def now(file: Path | None) -> Path | None:
        return file and places.get(file, file)

    adapters = tuple(
        one.model_copy(update={"file": now(one.file), "mask": now(one.mask)})
        for one in drawing.adapters
    )
    changes = {"adapters": adapters, "initial_image": now(drawing.initial_image)}
    return drawing.model_copy(update=changes)


def _files_of(drawing: Drawing) -> Iterator[Path]:
    yield from (one.file for one in drawing.adapters)
    yield from _pictures(drawing)


def _pictures(drawing: Drawing) -> Iterator[Path]:
    yield from (one.mask for one in drawing.adapters if one.mask is not None)
    if drawing.initial_image is not None:
        yield drawing.initial_image


def _tag(adapter: Strength, factor: float) -> str:
    unet, text = adapter.unet * factor, adapter.in_text * factor
    strength = f"{unet:g}" if unet == text else f"te={text:g}:unet={unet:g}"
    return f" <lora:{adapter.file.stem}:{strength}>"


def _listed(values: Iterable[tuple[Strength, str]]) -> str:
    return ", ".join(f"{adapter.file.stem}: {value}" for adapter, value in values)


def _mixing(drawing: Drawing) -> str:
    if len(drawing.adapters) < 2 or drawing.mixing == "sum":
        return ""
    every = f" every {drawing.switch_every} steps" if drawing.mixing == "switch" else ""
    return drawing.mixing + every


def _words(schedule: Schedule) -> str:
    span = f"{schedule.begin:g}-{schedule.end:g}"
    return f"{schedule.first:g}..{schedule.last:g}@{span}"


def _quoted(fact: object) -> str:
    """A value as A1111 writes it: in quotes if it has characters that separate values."""
    text = str(fact)
    return json.dumps(text, ensure_ascii=False) if set(text) & set(',:\n"') else text
