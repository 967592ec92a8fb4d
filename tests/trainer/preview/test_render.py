"""Our renderer against diffusers' pipeline, and strips against single images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image

from tests.adapters import random_adapter
from tests.images import apart, drawn_by
from trainer.adapter.adapter import save
from trainer.adapter.attach import attach, slots
from trainer.adapter.header import Header
from trainer.model.load import load
from trainer.model.stable_diffusion import BaseModel
from trainer.preview.render import Cancelled, PartStrength, Picture, render
from trainer.preview.request import Drawing, Strength
from trainer.preview.session import Session
from trainer.settings import Base

PICTURE = Picture("a cat", "blurry", seed=3, steps=4, guidance=5.0, width=64, height=96)


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> BaseModel:
    return load(Base(model=str(tiny_base), device="cpu"))


@pytest.fixture(scope="module")
def pipeline(tiny_base: Path) -> Iterator[Any]:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    return pipeline


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_the_base_image_equals_diffusers(model: BaseModel, pipeline: Any, guidance: float) -> None:
    picture = Picture("a cat", "blurry", 3, 4, guidance, 64, 96)
    assert apart(render(model, picture)[0], drawn_by(pipeline, picture)) <= 1


def test_our_file_in_diffusers_gives_our_image(
    model: BaseModel, pipeline: Any, tmp_path: Path
) -> None:
    adapter = random_adapter(model.parts)
    file = tmp_path / "adapter.safetensors"
    save(adapter, file, Header(name="x", family=model.family), precision=torch.float32)
    with attach(model.parts, {"x": adapter}) as attachment:
        ours = render(model, PICTURE, attachment, {"x": PartStrength()})[0]
    pipeline.load_lora_weights(tmp_path, weight_name=file.name)
    try:
        theirs = drawn_by(pipeline, PICTURE)
    finally:
        pipeline.unload_lora_weights()
    assert apart(ours, theirs) <= 1
    assert apart(ours, render(model, PICTURE)[0]) > 20  # and it is not the base's


def test_a_strip_is_its_images_one_by_one(model: BaseModel) -> None:
    strip = (0.0, 0.5, 1.0, -1.0)
    with attach(model.parts, {"x": random_adapter(model.parts)}) as attachment:
        strengths = {"x": PartStrength(0.8, 0.3)}
        together = render(model, PICTURE, attachment, strengths, strip)
        for factor, image in zip(strip, together, strict=True):
            alone = render(model, PICTURE, attachment, strengths, (factor,))[0]
            assert apart(image, alone) <= 1
        zero = render(model, PICTURE, attachment, {"x": PartStrength(0.0, 0.0)})[0]
    base = render(model, PICTURE)[0]
    assert apart(zero, base) == 0
    assert apart(together[0], base) <= 1


def test_rendering_leaves_the_global_random_state_alone(model: BaseModel) -> None:
    before = torch.get_rng_state()
    render(model, PICTURE)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_image_can_be_given_up_between_steps(model: BaseModel) -> None:
    done: list[int] = []
    with pytest.raises(Cancelled):
        render(
            model,
            PICTURE,
            on_step=lambda step, total: done.append(step),
            cancelled=lambda: len(done) == 2,
        )
    assert done == [1, 2]


def test_a_session_swaps_adapters_and_ends_at_the_base(tiny_base: Path, tmp_path: Path) -> None:
    session = Session(Base(model=str(tiny_base), device="cpu"))
    untouched = list(slots(session.model.parts))
    files = []
    for seed in (1, 2):
        files.append(tmp_path / f"{seed}.safetensors")
        adapter = random_adapter(session.model.parts, seed)
        save(adapter, files[-1], Header(name=str(seed), family=session.model.family))

    def draw(*strengths: Strength) -> Image.Image:
        return session.draw(
            Drawing(base="x", prompt="a cat", steps=2, width=64, height=64, adapters=strengths)
        )[0]

    base = draw()
    first = draw(Strength(file=files[0]))
    assert apart(base, first) > 5
    both = draw(Strength(file=files[0]), Strength(file=files[1], unet=0.5, text_encoder=0.0))
    assert apart(first, both) > 5
    assert apart(draw(Strength(file=files[0])), first) == 0
    assert apart(draw(), base) == 0
    assert list(slots(session.model.parts)) == untouched
