"""Images carry what they were drawn from, in A1111's words and in ours; hostile ones do no harm."""

from __future__ import annotations

import json
import re
import shutil
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open

from tests.adapters import random_adapter
from tests.pictures import png_chunk
from trainer.adapter.adapter import save
from trainer.adapter.header import Header
from trainer.errors import UserError
from trainer.model.load import load
from trainer.preview.grid import save_png
from trainer.preview.recipe import (
    MAX_BYTES,
    Recipe,
    found_again,
    read_recipe,
    recipe_of,
    tensor_hash,
)
from trainer.preview.request import Drawing, Strength
from trainer.preview.schedule import Schedule
from trainer.settings import Base

# A1111's own expression for the last line of its parameters.
A1111_FACT = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = load(Base(model=str(tiny_base), device="cpu"))
    file = tmp_path_factory.mktemp("adapters") / "pip.safetensors"
    save(random_adapter(model.parts), file, Header(name="pip", family=model.family))
    return file


def _drawing(adapter: Path, **changes: object) -> Drawing:
    fields = {
        "base": "embedded", "prompt": "a (cat:1.2),\nin the sun: Ω", "negative_prompt": "blurry",
        "adapters": (Strength(file=adapter, unet=0.5, text_encoder=0.25),), "strip": (0.0, 1.0),
        "seed": 7, "sampler": "dpm++-2m-karras", "guidance": 3.5, "clip_skip": 2,
    }  # fmt: skip
    return Drawing.model_validate(fields | changes)


def _saved(recipe: Recipe, file: Path) -> Path:
    save_png(Image.new("RGB", (64, 48)), file, recipe.texts(64, 48))
    return file


def _facts(file: Path) -> tuple[str, dict[str, str]]:
    """What comes before the last line of the parameters, and the facts in it, as A1111 reads."""
    *text, last = Image.open(file).info["parameters"].strip().split("\n")
    return "\n".join(text), {
        name: json.loads(value) if value.startswith('"') else value
        for name, value in A1111_FACT.findall(last)
    }


def test_a1111_reads_the_parameters(adapter: Path, tmp_path: Path) -> None:
    file = _saved(recipe_of([_drawing(adapter)], 1), tmp_path / "x.png")
    text, facts = _facts(file)
    assert text == (
        "a (cat:1.2),\nin the sun: Ω <lora:pip:te=0.25:unet=0.5>\nNegative prompt: blurry"
    )
    with safe_open(adapter, framework="pt") as opened:
        hashed = opened.metadata()["sshs_model_hash"]
    assert facts == {
        "Steps": "20", "Sampler": "DPM++ 2M Karras", "CFG scale": "3.5", "Seed": "7",
        "Size": "64x48", "Model": "embedded", "Clip skip": "2",
        "Lora hashes": f"pip: {hashed[:12]}", "Version": "LoRA Atelier",
    }  # fmt: skip


def test_what_a1111_has_no_words_for_is_told_in_ours(adapter: Path, tmp_path: Path) -> None:
    mask = tmp_path / "left, half.png"
    Image.new("L", (8, 8)).save(mask)
    use = Strength(file=adapter, schedule=Schedule(first=0, end=0.5), mask=mask)
    drawing = _drawing(
        adapter, adapters=(use, use), mixing="switch", initial_image=mask, denoise=0.5
    )
    _, facts = _facts(_saved(recipe_of([drawing], 1), tmp_path / "x.png"))
    assert facts["Denoising strength"] == "0.5"
    assert facts["Adapter mixing"] == "switch every 5 steps"
    assert facts["Adapter schedules"] == "pip: 0..1@0-0.5, pip: 0..1@0-0.5"
    assert facts["Adapter masks"] == "pip: left, half.png, pip: left, half.png"


def test_a_recipe_comes_back_from_its_image(adapter: Path, tmp_path: Path) -> None:
    recipe = recipe_of([_drawing(adapter), _drawing(adapter, prompt="a dog")])
    assert read_recipe(_saved(recipe, tmp_path / "x.png")) == recipe
    assert found_again(recipe) == recipe


def test_an_adapter_is_found_by_its_hash_wherever_it_went(adapter: Path, tmp_path: Path) -> None:
    here, other = tmp_path / "pip.safetensors", tmp_path / "deep" / "er" / "renamed.safetensors"
    shutil.copy(adapter, here)
    recipe = recipe_of([_drawing(here)], 0)
    other.parent.mkdir(parents=True)
    here.rename(other)
    with pytest.raises(
        UserError, match=rf"pip\.safetensors with the hash {tensor_hash(other)[:12]}"
    ):
        found_again(recipe)
    found = found_again(recipe, [tmp_path])
    assert found.drawings[0].adapters[0].file == other
    assert found_again(recipe, [other]) == found

    content = bytearray(other.read_bytes())
    content[-1] ^= 1
    here.write_bytes(content)
    with pytest.raises(UserError, match="has changed since"):
        found_again(recipe)
    assert found_again(recipe, [tmp_path]) == found  # the unchanged copy, by its hash


def test_a_changed_image_is_told(adapter: Path, tmp_path: Path) -> None:
    image = tmp_path / "begin.png"
    Image.new("RGB", (8, 8)).save(image)
    recipe = recipe_of([_drawing(adapter, initial_image=image)], 0)
    Image.new("RGB", (8, 8), "red").save(image)
    with pytest.raises(UserError, match=r"image .*begin\.png has changed"):
        found_again(recipe)
    with pytest.raises(UserError, match="There is no file or folder"):
        found_again(recipe, [tmp_path / "nowhere"])


def _png(*chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    body = png_chunk(b"IDAT", zlib.compress(b"\0" * 4)), png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join((png_chunk(b"IHDR", header), *chunks, *body))


def _text(content: bytes) -> bytes:
    return png_chunk(b"tEXt", b"atelier\0" + content)


def _json(**changes: object) -> bytes:
    drawing = {"base": "embedded", "prompt": "x"}
    return json.dumps({"drawings": [drawing]} | changes).encode()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not a PNG"),
        (b"GIF89a", "is not a PNG"),
        (_png(), "carries no recipe"),
        (_png(_text(_json()))[:60], "carries no recipe|damaged"),
        (_png(_text(b"")), "is broken"),
        (_png(_text(b"{")), "is broken"),
        (_png(_text(b"\xff\xfe")), "is broken"),
        (_png(_text(b"[" * 100_000)), "is broken"),
        (_png(_text(_json(drawings=[]))), "is broken: drawings"),
        (_png(_text(_json(image=-1))), "is broken: image"),
        (_png(_text(_json(extra=1))), "is broken: extra"),
        (_png(_text(_json(image=1))), "has no image 1"),
        (_png(_text(_json(layout={"columns": ["a", "b"], "rows": ["c"]}))), "other than its 1 im"),
        (_png(png_chunk(b"tEXt", b"parameters\0a cat")), "only in A1111's words"),
        (_png(_text(_json(drawings=[{"base": "embedded", "prompt": "x", "steps": 10**9}]))),
         "is broken: drawings.0.steps"),
        (_png(_text(b" " * (MAX_BYTES + 1))), "more than any has"),
        (_png(_text(_json())[:-1] + b"\0"), "damaged"),
        (_png(struct.pack(">I4s", 2**32 - 1, b"tEXt") + b"atelier\0{}"), "more than any has"),
        (_png(*[png_chunk(b"tEXt", b"a\0b")] * 100_001, _text(_json())), "carries no recipe"),
    ],
)  # fmt: skip
def test_hostile_chunks_are_refused_in_a_sentence(
    content: bytes, says: str, tmp_path: Path
) -> None:
    file = tmp_path / "x.png"
    file.write_bytes(content)
    with pytest.raises(UserError, match=says) as refused:
        read_recipe(file)
    assert "\n" not in str(refused.value)


def test_a_missing_image_is_refused(tmp_path: Path) -> None:
    for file in (tmp_path / "no.png", tmp_path, Path("/dev/zero")):
        with pytest.raises(UserError, match="There is no image"):
            read_recipe(file)


def test_files_given_by_hand_are_not_looked_for(adapter: Path) -> None:
    recipe = recipe_of([_drawing(adapter)], 0)
    drawing = _drawing(adapter, adapters=(Strength(file=Path("new.safetensors")),))
    changed = recipe.model_copy(update={"drawings": (drawing,)})
    assert found_again(changed) == changed
