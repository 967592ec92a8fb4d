"""Every family, from a diffusers folder: drawn as diffusers draws, trained, and read back there."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel

from tests.images import apart, drawn_by
from tests.trainer.adapter import families
from tests.trainer.training.runs import new_run
from trainer.errors import BaseModelError
from trainer.model.bases import Family, family_of
from trainer.model.load import load
from trainer.preview.render import Picture, render
from trainer.run import State
from trainer.settings import Base
from trainer.training.attempt import attempt

FAMILIES = list(Family)


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base of each family in the diffusers layout."""
    folder = tmp_path_factory.mktemp("families") / request.param
    pipeline = families.pipeline(request.param, folder / "words")
    if request.param is Family.SD2:  # its tiny UNet has a width of its own, to be told apart by
        config = {**pipeline.unet.config, "cross_attention_dim": families.TEXT_WIDTH}
        pipeline.unet = UNet2DConditionModel.from_config(config)
    pipeline.save_pretrained(folder)
    return folder


def test_the_family_is_recognised_and_draws_as_in_diffusers(base: Path) -> None:
    model = load(Base(model=str(base), device="cpu"))
    assert model.family == family_of(base) == base.name
    picture = Picture("a cat", "blurry", seed=1, steps=3, guidance=4.0, width=64, height=96)
    pipeline = DiffusionPipeline.from_pretrained(base)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    assert apart(render(model, picture)[0], drawn_by(pipeline, picture)) <= 1


def test_it_trains_and_diffusers_reads_every_key(base: Path, photos: Path, tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", base, photos, training__steps=3, samples__prompts=())
    assert attempt(run) is State.FINISHED
    assert any(
        tensor.abs().max() > 0
        for key, tensor in safetensors.torch.load_file(run.adapter_file).items()
        if "lora_up" in key
    )
    pipeline = DiffusionPipeline.from_pretrained(base)
    pipeline.load_lora_weights(run.path, weight_name=run.adapter_file.name)
    adapted = sum(
        "lora_A.default_0.weight" in name
        for part in pipeline.components.values()
        if isinstance(part, torch.nn.Module)
        for name, _ in part.named_parameters()
    )
    keys = safetensors.torch.load_file(run.adapter_file)
    assert adapted == sum(key.endswith("lora_down.weight") for key in keys)


def test_a_pipeline_of_another_kind_is_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(BaseModelError, match="FluxPipeline, which is not supported"):
        family_of(tmp_path)
