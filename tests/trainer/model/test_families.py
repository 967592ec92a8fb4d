"""Every family, from a diffusers folder and from a single file in the original layout: recognised,
drawn as diffusers draws, trained, and read back there."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline
from transformers import CLIPTextConfig, CLIPTextModel

from tests import single_files
from tests.images import apart, drawn_by
from tests.trainer.training.runs import new_run
from trainer import cli
from trainer.errors import BaseModelError
from trainer.model.bases import Family, family_of
from trainer.model.describe import describe
from trainer.model.load import load
from trainer.model.stable_diffusion import BaseModel
from trainer.preview.render import Picture, render
from trainer.run import State
from trainer.settings import Base
from trainer.training.attempt import attempt


@dataclass(frozen=True)
class Twins:
    """The same tiny base in both layouts."""

    family: Family
    folder: Path
    file: Path


@pytest.fixture(scope="module", params=list(Family), ids=str)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Twins:
    home = tmp_path_factory.mktemp("families")
    pipeline = single_files.pipeline(request.param)
    pipeline.save_pretrained(home / "folder")
    file = single_files.write(home / "file.safetensors", pipeline, request.param)
    return Twins(request.param, home / "folder", file)


def loaded(place: Path) -> BaseModel:
    return load(Base(model=str(place), device="cpu"))


def test_a_file_gives_the_tensors_and_the_noise_of_its_folder(base: Twins) -> None:
    one, other = loaded(base.folder), loaded(base.file)
    encoders = zip(one.text_encoders.values(), other.text_encoders.values(), strict=True)
    vaes = (one.vae, other.vae)  # type: ignore[attr-defined]
    for ours, theirs in ((one.unet, other.unet), vaes, *encoders):
        expected, found = ours.state_dict(), theirs.state_dict()
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert one.native_size == other.native_size == single_files.SIZE
    assert torch.equal(one.alphas_cumprod, other.alphas_cumprod)
    prompts = ["A photo of a café, 35mm", ""]
    conditioning, same = one.encode_prompts(prompts), other.encode_prompts(prompts)
    assert torch.equal(conditioning.hidden, same.hidden)
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([10, 900])
    assert torch.equal(
        one.predict(noisy, timesteps, conditioning), other.predict(noisy, timesteps, same)
    )


@pytest.mark.parametrize("layout", ["folder", "file"])
def test_it_is_recognised_and_draws_as_in_diffusers(base: Twins, layout: str) -> None:
    place = getattr(base, layout)
    model = loaded(place)
    assert model.family == describe(place).family == base.family
    picture = Picture("a cat", "blurry", seed=1, steps=3, guidance=4.0, width=64, height=96)
    pipeline = DiffusionPipeline.from_pretrained(base.folder)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    assert apart(render(model, picture)[0], drawn_by(pipeline, picture)) <= 1


@pytest.mark.parametrize("layout", ["folder", "file"])
def test_it_trains_and_diffusers_reads_every_key(
    base: Twins, layout: str, photos: Path, tmp_path: Path
) -> None:
    run = new_run(
        tmp_path / "run", getattr(base, layout), photos, training__steps=20, samples__prompts=(),
        training__batch_size=1, training__gradient_accumulation=1, validation__every_steps=20,
        training__checkpoint_every_steps=20,
    )  # fmt: skip
    assert attempt(run) is State.FINISHED
    keys = safetensors.torch.load_file(run.adapter_file)
    ups = {key: tensor for key, tensor in keys.items() if key.endswith("lora_up.weight")}
    assert all(tensor.abs().max() > 0 for key, tensor in ups.items() if "lora_unet" in key)
    pipeline = DiffusionPipeline.from_pretrained(base.folder)
    pipeline.load_lora_weights(run.path, weight_name=run.adapter_file.name)
    adapted = sum(
        "lora_A.default_0.weight" in name
        for part in pipeline.components.values()
        if isinstance(part, torch.nn.Module)
        for name, _ in part.named_parameters()
    )
    assert adapted == sum(key.endswith("lora_down.weight") for key in keys) == len(ups)


def test_doctor_says_what_a_base_is(
    base: Twins, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for place in (base.folder, base.file):
        cli.run(["doctor", "--base", str(place)])
        assert capsys.readouterr().out.startswith(f"Base {place}: {base.family.full_name}\n")
    assert cli.run(["doctor", "--base", str(tmp_path / "none")]) == 2
    assert "no such folder or file" in capsys.readouterr().err


def test_a_pipeline_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(BaseModelError, match="FluxPipeline, which is not supported"):
        family_of(tmp_path)


@pytest.mark.parametrize(
    ("channels", "said"), [(9, "an inpainting model"), (8, "an InstructPix2Pix model")]
)
def test_a_folder_that_reads_more_than_latents_is_refused(
    channels: int, said: str, small_base: Path, tmp_path: Path
) -> None:
    shutil.copytree(small_base, tmp_path / "base")
    config = tmp_path / "base" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": channels}))
    with pytest.raises(BaseModelError, match=said):
        loaded(tmp_path / "base")


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("text_encoder", {"hidden_size": 24}, "reads texts of width 32, not 24"),
        ("vae", {"latent_channels": 8}, "makes latents of 8 channels"),
    ],
)
def test_parts_of_different_models_are_told(
    small_base: Path, tmp_path: Path, part: str, change: dict[str, int], words: str
) -> None:
    folder = shutil.copytree(small_base, tmp_path / "base")
    config = json.loads((folder / part / "config.json").read_text()) | change
    made: Any = (
        AutoencoderKL.from_config(config)
        if part == "vae"
        else CLIPTextModel(CLIPTextConfig(**config))
    )
    shutil.rmtree(folder / part)
    made.save_pretrained(folder / part)
    with pytest.raises(BaseModelError, match=words):
        loaded(folder)


def test_the_refiner_is_refused(tmp_path: Path) -> None:
    index = {
        "_class_name": "StableDiffusionXLImg2ImgPipeline",
        "text_encoder": [None, None],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(BaseModelError, match="SDXL's refiner"):
        describe(tmp_path)
