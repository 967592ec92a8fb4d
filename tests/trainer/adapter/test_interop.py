"""Files as other tools read and write them: diffusers and PEFT are the oracles."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoraConfig, PeftConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.trainer.adapter import families
from trainer.adapter.adapter import LowRank, load, save
from trainer.adapter.header import Header
from trainer.adapter.keys import Form
from trainer.errors import AdapterError
from trainer.model.bases import Family

Case = tuple[Family, Any]


@torch.no_grad()
def outputs(model: Any, family: Family) -> dict[str, Tensor]:
    """What each adapted part of a pipeline makes of fixed inputs."""
    generator = torch.Generator().manual_seed(1)
    width = model.unet.config.cross_attention_dim
    inputs = {
        "sample": torch.randn(1, 4, 8, 8, generator=generator),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 5, width, generator=generator),
    }
    if family is Family.SDXL:
        inputs["added_cond_kwargs"] = {  # type: ignore[assignment]
            "text_embeds": torch.randn(1, families.TEXT_WIDTH, generator=generator),
            "time_ids": torch.tensor([[8.0, 8, 0, 0, 8, 8]]),
        }
    tokens = torch.tensor([[0, 5, 9, 30, 1]])
    made = {"unet": model.unet(**inputs).sample}
    for part in ("text_encoder", "text_encoder_2"):
        if getattr(model, part, None) is not None:
            made[part] = getattr(model, part)(tokens, output_hidden_states=True).hidden_states[-1]
    return made


@contextmanager
def by_hand(model: Any, adapter: dict[str, LowRank], strength: float = 1.0) -> Iterator[None]:
    """The model with ΔW added to its weights, and its own weights back afterwards."""
    changed = {path: layer for path, layer in families.layers(model) if path in adapter}
    kept = {path: layer.weight.detach().clone() for path, layer in changed.items()}
    for path, layer in changed.items():
        layer.weight.data += strength * adapter[path].delta()
    try:
        yield
    finally:
        for path, layer in changed.items():
            layer.weight.data = kept[path]


def adapter_for(model: Any, *, mixed: bool = True) -> dict[str, LowRank]:
    shapes = {path: tuple(layer.weight.shape) for path, layer in families.layers(model)}
    return families.random_adapter(shapes, rank=2, alpha=1.0, mixed=mixed)


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_diffusers_loads_every_layer_at_its_scale(
    pipeline: Case, tmp_path: Path, form: Form, caplog: pytest.LogCaptureFixture
) -> None:
    family, model = pipeline
    check_in_diffusers(family, model, tmp_path, form, caplog)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_diffusers_loads_every_layer_of_a_deep_sdxl(
    tmp_path: Path, form: Form, caplog: pytest.LogCaptureFixture
) -> None:
    model = families.pipeline(Family.SDXL, tmp_path / "words", deep=True)
    check_in_diffusers(Family.SDXL, model, tmp_path, form, caplog)


def check_in_diffusers(
    family: Family, model: Any, tmp_path: Path, form: Form, caplog: pytest.LogCaptureFixture
) -> None:
    """Loads a file of ours into a pipeline; all layers are there, and act as ΔW added by hand."""
    adapter = adapter_for(model)
    file = tmp_path / "a.safetensors"
    save(adapter, file, Header("a", family), precision=torch.float32, form=form)
    before = outputs(model, family)
    with by_hand(model, adapter):
        wanted = outputs(model, family)
    with caplog.at_level(logging.WARNING):
        model.load_lora_weights(file, adapter_name="a")
    try:
        made = outputs(model, family)
        adapted = sum(
            hasattr(module, "lora_A")
            for part in wanted
            for module in getattr(model, part).modules()
        )
    finally:
        model.unload_lora_weights()
    assert adapted == len(adapter)
    assert not [record for record in caplog.records if "key" in record.getMessage()]
    for part, tensor in wanted.items():
        assert families.relative(made[part], tensor) < 1e-4, part
        assert families.relative(before[part], tensor) > 1e-2, part


def test_half_precision_costs_a_thousandth(pipeline: Case, tmp_path: Path) -> None:
    family, model = pipeline
    adapter = adapter_for(model)
    save(adapter, tmp_path / "a.safetensors", Header("a", family))
    read = load(tmp_path / "a.safetensors").adapter
    for path, layer in adapter.items():
        assert families.relative(read[path].delta(), layer.delta()) < 1e-3


def test_files_of_diffusers_own_recipe_keep_their_scale(pipeline: Case, tmp_path: Path) -> None:
    """Alpha is then only in the header, under `lora_adapter_metadata`."""
    family, model = pipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(0)
    config = LoraConfig(
        r=4, lora_alpha=8, init_lora_weights=False, target_modules=["to_q", "to_v"],
        rank_pattern={"attn2.to_v": 2}, alpha_pattern={"attn2.to_v": 3},
    )  # fmt: skip
    text_config = LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, init_lora_weights=False, target_modules=["q_proj"]
    )
    model.unet.add_adapter(config)
    model.text_encoder.add_adapter(text_config)
    try:
        wanted = outputs(model, family)
        model.save_lora_weights(
            tmp_path,
            unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(model.unet)),
            text_encoder_lora_layers=convert_state_dict_to_diffusers(
                get_peft_model_state_dict(model.text_encoder)
            ),
            unet_lora_adapter_metadata=config.to_dict(),
            text_encoder_lora_adapter_metadata=text_config.to_dict(),
        )
    finally:
        model.unet.delete_adapters("default")
        model.text_encoder.delete_adapter("default")
        model.unload_lora_weights()
    loaded = load(tmp_path / "pytorch_lora_weights.safetensors")
    assert not loaded.unused
    assert {layer.alpha for layer in loaded.adapter.values()} == {8.0, 3.0, 12.0}
    with by_hand(model, dict(loaded.adapter)):
        made = outputs(model, family)
    for part, tensor in wanted.items():
        assert families.relative(made[part], tensor) < 1e-4, part


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, target_modules=["to_k", "conv1"]),
        LoraConfig(
            r=4,
            lora_alpha=6,
            init_lora_weights=False,
            use_rslora=True,
            target_modules=["to_k", "conv1"],
            rank_pattern={"conv1": 3},
            alpha_pattern={"attn1.to_k": 9, "mid_block.resnets.0.conv1": 1},
        ),
        LoHaConfig(r=2, alpha=3, init_weights=False, target_modules=["to_k", "conv1"]),
    ],
    ids=["LoRA", "patterns", "LoHa"],
)
def test_peft_folders_keep_their_scale(tmp_path: Path, config: PeftConfig) -> None:
    from peft import get_peft_model

    torch.manual_seed(0)
    model = families.unet(Family.SD1)
    wrapped = get_peft_model(model, config)
    wrapped.save_pretrained(tmp_path)
    adapter = load(tmp_path / "adapter_model.safetensors").adapter
    wanted = {
        f"unet.{name.removeprefix('base_model.model.')}": module.get_delta_weight("default")
        for name, module in wrapped.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert wanted.keys() == adapter.keys()
    for path, delta in wanted.items():
        made = adapter[path].delta().reshape(delta.shape)
        assert families.relative(made, delta.detach()) < 1e-5


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"unet.lora_alpha": "eight"}',
        '{"unet.lora_alpha": 8, "unet.alpha_pattern": {"(a+)+": 1}}',
        '{"unet.lora_alpha": 8, "unet.init_lora_weights": "pissa_niter_16"}',
    ],
)
def test_a_scale_that_is_not_understood_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.safetensors"
    save(families.random_adapter(families.SMALL), file, Header("a", Family.SD1), form="diffusers")
    save_file(load_file(file), file, metadata={"lora_adapter_metadata": text})
    with pytest.raises(AdapterError):
        load(file)


def test_header_is_what_other_tools_read(tmp_path: Path) -> None:
    import hashlib
    import struct

    from safetensors import safe_open

    file = tmp_path / "a.safetensors"
    adapter = families.random_adapter(families.SMALL, rank=4, alpha=2.0)
    header = Header("mine", Family.SD2, prediction_type="v_prediction", trigger_words=("xyz",))
    save(adapter, file, header)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
        alphas = {float(opened.get_tensor(k)) for k in opened.keys() if k.endswith(".alpha")}  # noqa: SIM118
    assert alphas == {2.0}
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    assert length % 8 == 0
    assert metadata["sshs_model_hash"] == hashlib.sha256(content[8 + length :]).hexdigest()
    assert metadata["sshs_legacy_hash"] == "e3b0c442"  # of nothing: small files end before it
    expected = {
        "ss_base_model_version": "sd_v2_v", "ss_v2": "True", "ss_output_name": "mine",
        "ss_network_module": "networks.lora", "ss_network_dim": "4", "ss_network_alpha": "2",
        "modelspec.architecture": "stable-diffusion-v2-768-v/lora", "modelspec.title": "mine",
        "modelspec.trigger_phrase": "xyz", "modelspec.sai_model_spec": "1.0.1",
        "modelspec.resolution": "768x768", "modelspec.prediction_type": "v",
        "modelspec.implementation": "diffusers",
    }  # fmt: skip
    assert expected.items() <= metadata.items()
    assert json.loads(metadata["atelier.trigger_words"]) == ["xyz"]
