"""Our samplers, clip skip and image to image against diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image

from tests import tiny
from tests.adapters import random_adapter
from tests.images import apart, drawn_by
from tests.pictures import noise
from trainer.adapter.attach import attach
from trainer.data.latents import to_tensor
from trainer.errors import DatasetError, UserError
from trainer.model.load import load
from trainer.model.stable_diffusion import BaseModel
from trainer.preview.emphasis import encode
from trainer.preview.render import PartStrength, Picture, render
from trainer.preview.samplers import SAMPLERS, Sampler
from trainer.settings import Base

PICTURE = Picture("a cat", "blurry", seed=3, steps=5, guidance=4.0, width=64, height=96)
# As people name them to diffusers: class, and what is not its default.
THEIRS: dict[Sampler, tuple[str, dict[str, object]]] = {
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "dpm++-2m-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
}


@pytest.fixture(scope="module")
def velocity_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that predicts velocity, down to zero signal."""
    folder = tmp_path_factory.mktemp("bases") / "zero-snr"
    base = tiny.stable_diffusion(folder, "v_prediction")
    file = base / "scheduler" / "scheduler_config.json"
    config = diffusers.DDIMScheduler.from_pretrained(base / "scheduler").config
    diffusers.DDIMScheduler.from_config(
        config, rescale_betas_zero_snr=True, timestep_spacing="trailing"
    ).save_pretrained(file.parent)
    return base


@pytest.fixture(scope="module")
def bases(tiny_base: Path, velocity_base: Path) -> dict[str, tuple[BaseModel, Any]]:
    """Our model and diffusers' pipeline of each base."""
    return {
        name: (
            load(Base(model=str(folder), device="cpu")),
            StableDiffusionPipeline.from_pretrained(folder),
        )
        for name, folder in (("epsilon", tiny_base), ("velocity", velocity_base))
    }


@pytest.fixture
def model(bases: dict[str, tuple[BaseModel, Any]]) -> BaseModel:
    return bases["epsilon"][0]


def _scheduler(sampler: Sampler, pipeline: Any) -> Any:
    name, options = THEIRS[sampler]
    return getattr(diffusers, name).from_config(pipeline.scheduler.config, **options)


@pytest.fixture
def scheduled(bases: dict[str, tuple[BaseModel, Any]]) -> Iterator[Callable[..., Any]]:
    """The pipeline of a base with a sampler; its own scheduler comes back afterwards."""
    before = {name: pipeline.scheduler for name, (_, pipeline) in bases.items()}

    def with_sampler(base: str, sampler: Sampler) -> Any:
        pipeline = bases[base][1]
        pipeline.scheduler = _scheduler(sampler, pipeline)
        return pipeline

    yield with_sampler
    for name, (_, pipeline) in bases.items():
        pipeline.scheduler = before[name]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("base", ["epsilon", "velocity"])
def test_the_image_equals_diffusers(
    base: str,
    sampler: Sampler,
    bases: dict[str, tuple[BaseModel, Any]],
    scheduled: Callable[..., Any],
) -> None:
    picture = replace(PICTURE, sampler=sampler)
    ours = render(bases[base][0], picture)[0]
    assert apart(ours, drawn_by(scheduled(base, sampler), picture)) <= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_images_of_a_strip_share_all_noise(sampler: Sampler, model: BaseModel) -> None:
    picture = replace(PICTURE, sampler=sampler)
    with attach(model.parts, {"x": random_adapter(model.parts)}) as attachment:
        strip = render(model, picture, attachment, {"x": PartStrength()}, (0.5, 1.0, 0.5))
        alone = render(model, picture, attachment, {"x": PartStrength()}, (1.0,))[0]
    assert apart(strip[0], strip[2]) <= 1  # places in a batch may round differently
    assert apart(strip[1], alone) <= 1


def test_our_clip_skip_2_is_diffusers_1(
    model: BaseModel, scheduled: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = scheduled("epsilon", "ddim")
    encoder = pipeline.text_encoder
    if not hasattr(encoder, "text_model"):
        # diffusers looks for the norm one level deeper than transformers 5 has it.
        level = SimpleNamespace(final_layer_norm=encoder.final_layer_norm)
        monkeypatch.setattr(encoder, "text_model", level, raising=False)
    wanted, _ = pipeline.encode_prompt("a cat", "cpu", 1, False, clip_skip=1)
    torch.testing.assert_close(encode(model, ["a cat"], clip_skip=2).hidden, wanted)
    plain = encode(model, ["a cat"]).hidden
    assert torch.equal(plain, model.encode_prompts(["a cat"]).hidden)
    assert not torch.allclose(plain, wanted, atol=1e-2)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_image_to_image_equals_diffusers(
    sampler: Sampler, model: BaseModel, scheduled: Callable[..., Any], tmp_path: Path
) -> None:
    file = tmp_path / "begin.png"
    image = noise(1, 64, 96)
    image.save(file)
    picture = replace(PICTURE, sampler=sampler, initial_image=file, denoise=0.6)
    pipeline = StableDiffusionImg2ImgPipeline.from_pipe(scheduled("epsilon", sampler))
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        picture.prompt,
        negative_prompt=picture.negative_prompt,
        # Latents, since diffusers draws a sample of them where we take their mean.
        image=model.encode_images(to_tensor(image)[None]),
        strength=0.6,
        num_inference_steps=picture.steps,
        guidance_scale=picture.guidance,
        generator=torch.Generator().manual_seed(picture.seed),
    ).images[0]
    assert apart(render(model, picture)[0], theirs) <= 1


def test_the_size_follows_the_initial_image(model: BaseModel, tmp_path: Path) -> None:
    file = tmp_path / "wide.png"
    Image.new("RGB", (400, 100), "red").save(file)  # the base is made for 64 x 64
    free = Picture("a cat", steps=2, guidance=1, initial_image=file, denoise=0.5)
    assert render(model, free)[0].size == (128, 32)
    assert render(model, replace(free, width=96))[0].size == (96, 24)
    assert render(model, replace(free, width=64, height=64))[0].size == (64, 64)


def test_what_cannot_be_started_from_is_refused(model: BaseModel, tmp_path: Path) -> None:
    file = tmp_path / "torn.png"
    noise(1).save(file)
    picture = replace(PICTURE, initial_image=file, denoise=0.1)
    with pytest.raises(UserError, match="leaves none to take"):
        render(model, picture)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DatasetError, match=r"torn\.png"):
        render(model, picture)
    strengths = {"x": PartStrength(mask=file)}
    with (
        attach(model.parts, {"x": random_adapter(model.parts)}) as attachment,
        pytest.raises(DatasetError, match=r"torn\.png"),
    ):
        render(model, PICTURE, attachment, strengths)
