"""What the header of a single file tells: family, prediction, size; and what is no base."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers.loaders import single_file_utils as theirs

from tests import single_files
from tests.adapters import random_adapter
from trainer.adapter.adapter import save
from trainer.adapter.base_weights import read_weights
from trainer.adapter.header import Header
from trainer.errors import BaseModelError
from trainer.model import configurations
from trainer.model.bases import Family
from trainer.model.clip_tokenizer import clip_tokenizer
from trainer.model.describe import describe
from trainer.model.load import load
from trainer.model.load_file import unpack
from trainer.model.single_file import SingleFile, read_single_file
from trainer.settings import Base

Shapes = Mapping[str, tuple[int, ...]]
SD2_NORM = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"


@pytest.fixture(scope="module")
def pipelines() -> dict[Family, Any]:
    return {family: single_files.pipeline(family) for family in Family}


def stub(path: Path, shapes: Shapes, dtype: str = "F16") -> Path:
    """A file of zeros with tensors of these shapes."""
    entries, position = {}, 0
    width = {"F16": 2, "F8_E4M3": 1, "F32": 4, "U8": 1}[dtype]
    for name, shape in shapes.items():
        size = width * int(torch.Size(shape).numel())
        entries[name] = {
            "dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]
        }  # fmt: skip
        position += size
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(position))
    return path


def test_tensors_of_the_released_models_give_their_configurations() -> None:
    # The shapes that matter, as they are in the released files.
    def level(block: int, width: int, depth: int, text: int, linear: bool) -> dict[str, Any]:
        prefix = f"model.diffusion_model.input_blocks.{block}."
        shapes: dict[str, Any] = {f"{prefix}0.in_layers.2.weight": (width, width, 3, 3)}
        for index in range(depth):
            inner = f"{prefix}1.transformer_blocks.{index}.attn2.to_k.weight"
            shapes[inner] = (width, text)
        return shapes

    def unet(widths: list[int], depths: list[int], text: int, linear: bool) -> dict[str, Any]:
        prefix = "model.diffusion_model."
        shapes: dict[str, Any] = {f"{prefix}input_blocks.0.0.weight": (widths[0], 4, 3, 3)}
        for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for layer in (1, 2):
                shapes |= level(3 * index + layer, width, depth, text, linear)
            if index < len(widths) - 1:
                shapes[f"{prefix}input_blocks.{3 * index + 3}.0.op.weight"] = (width, width, 3, 3)
        middle = f"{prefix}middle_block.1."
        shapes[f"{middle}proj_in.weight"] = (1280, 1280, *(() if linear else (1, 1)))
        for index in range(max(depths)):
            shapes[f"{middle}transformer_blocks.{index}.attn2.to_k.weight"] = (1280, text)
        return shapes | {f"{prefix}out.2.weight": (4, widths[0], 3, 3)}

    def config(family: Family, shapes: dict[str, Any], size: int) -> dict[str, Any]:
        shapes |= {f"first_stage_model.encoder.down.{i}.x": (1,) for i in range(4)}
        file = SingleFile(Path("x"), family, "epsilon", False, size, shapes)
        return configurations.unet_config(file)

    sd1 = config(Family.SD1, unet([320, 640, 1280, 1280], [1, 1, 1, 0], 768, False), 512)
    assert sd1["attention_head_dim"] == 8
    assert sd1["cross_attention_dim"] == 768
    assert sd1["block_out_channels"] == [320, 640, 1280, 1280]
    assert sd1["down_block_types"] == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    assert sd1["up_block_types"] == ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    assert (sd1["sample_size"], sd1["layers_per_block"]) == (64, 2)
    assert (sd1["norm_num_groups"], sd1["use_linear_projection"]) == (32, False)
    sd2 = config(Family.SD2, unet([320, 640, 1280, 1280], [1, 1, 1, 0], 1024, True), 768)
    assert sd2["attention_head_dim"] == [5, 10, 20, 20]
    assert (sd2["sample_size"], sd2["use_linear_projection"]) == (96, True)
    shapes = unet([320, 640, 1280], [0, 2, 10], 2048, True) | {
        "model.diffusion_model.label_emb.0.0.weight": (1280, 2816),
        "conditioner.embedders.1.model.text_projection": (1280, 1280),
    }
    xl = config(Family.SDXL, shapes, 1024)
    assert xl["attention_head_dim"] == [5, 10, 20]
    assert xl["transformer_layers_per_block"] == [1, 2, 10]
    assert xl["down_block_types"] == ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2
    assert xl["addition_time_embed_dim"] == 256
    assert xl["projection_class_embeddings_input_dim"] == 2816
    assert xl["sample_size"] == 128


def test_words_that_were_added_to_a_text_encoder_do_not_move_its_end_of_text() -> None:
    prefix = "cond_stage_model.transformer.text_model."
    shapes = {
        f"{prefix}embeddings.token_embedding.weight": (49410, 768),
        f"{prefix}embeddings.position_embedding.weight": (77, 768),
        f"{prefix}encoder.layers.0.mlp.fc1.weight": (3072, 768),
    }
    file = SingleFile(Path("x"), Family.SD1, "epsilon", False, 512, shapes)
    config = configurations.text_config(file, "text_encoder")
    assert config["vocab_size"] == 49410
    assert config["eos_token_id"] == clip_tokenizer(49410, "!").eos_token_id == 49407
    assert (config["num_attention_heads"], config["hidden_act"]) == (12, "quick_gelu")


@pytest.mark.parametrize("family", Family, ids=str)
def test_our_names_are_those_that_diffusers_reads(
    family: Family, pipelines: dict[Family, Any]
) -> None:
    # The oracle of the names that `single_files` writes: diffusers' converter gives the model back.
    tensors = single_files.original(pipelines[family], family)
    config = pipelines[family].unet.config
    converted = theirs.convert_ldm_unet_checkpoint(dict(tensors), config)
    expected = pipelines[family].unet.state_dict()
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("family", "markers", "metadata", "expected"),
    [
        (Family.SD1, (), {}, "Stable Diffusion 1.x"),
        (Family.SD1, (), {"prediction_type": "v"}, "Stable Diffusion 1.x, v-prediction"),
        (Family.SD2, (), {}, "Stable Diffusion 2.x"),
        (Family.SD2, (), {"architecture": "stable-diffusion-v2-768-v"},
         "Stable Diffusion 2.x, v-prediction"),
        (Family.SD2, (), {"architecture": "stable-diffusion-v2-512"}, "Stable Diffusion 2.x"),
        (Family.SDXL, (), {}, "SDXL"),
        (Family.SDXL, ("v_pred",), {}, "SDXL, v-prediction"),
        (Family.SDXL, ("v_pred", "ztsnr"), {}, "SDXL, v-prediction, zero terminal SNR"),
    ],
)  # fmt: skip
def test_what_a_file_predicts(
    family: Family, markers: tuple[str, ...], metadata: dict[str, str], expected: str,
    pipelines: dict[Family, Any], tmp_path: Path,
) -> None:  # fmt: skip
    file = tmp_path / "x.safetensors"
    single_files.write(file, pipelines[family], family, markers, **metadata)
    assert str(describe(file)) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_sd2_is_told_by_a_bias_unless_metadata_or_settings_say_otherwise(
    dtype: torch.dtype, pipelines: dict[Family, Any], tmp_path: Path
) -> None:
    tensors = single_files.original(pipelines[Family.SD2], Family.SD2)
    spread = torch.tensor([-0.2, 0.2]).repeat(len(tensors[SD2_NORM]) // 2)
    tensors = {name: tensor.to(dtype) for name, tensor in (tensors | {SD2_NORM: spread}).items()}
    file, told = tmp_path / "x.safetensors", tmp_path / "told.safetensors"
    safetensors.torch.save_file(tensors, file)
    assert read_single_file(file).prediction_type == "v_prediction"
    assert read_single_file(file).size == 768
    safetensors.torch.save_file(
        tensors, told, {"modelspec.architecture": "stable-diffusion-v2-512"}
    )
    assert read_single_file(told).prediction_type == "epsilon"
    assert read_single_file(told).size == 512
    model = load(Base(model=str(file), prediction_type="epsilon", device="cpu"))
    assert model.prediction_type == "epsilon"


def test_v_prediction_without_terminal_signal_is_honoured(
    pipelines: dict[Family, Any], tmp_path: Path
) -> None:
    file = tmp_path / "x.safetensors"
    single_files.write(file, pipelines[Family.SDXL], Family.SDXL, ("v_pred", "ztsnr"))
    model = load(Base(model=str(file), device="cpu"))
    assert model.prediction_type == "v_prediction"
    assert model.alphas_cumprod[-1] == 0
    assert model.scheduler_config["timestep_spacing"] == "trailing"
    plain = load(Base(model=str(file), device="cpu", zero_terminal_snr=False))
    assert plain.alphas_cumprod[-1] > 1e-3


def test_fp8_is_read_and_packed_weights_are_not(
    pipelines: dict[Family, Any], tmp_path: Path
) -> None:
    file = tmp_path / "x.safetensors"
    single_files.write(file, pipelines[Family.SD1], Family.SD1, dtype=torch.float8_e4m3fn)
    model = load(Base(model=str(file), device="cpu"))
    weight, expected = (unet.conv_in.weight for unet in (model.unet, pipelines[Family.SD1].unet))
    assert torch.equal(weight, expected.to(torch.float8_e4m3fn).float())
    packed = single_files.original(pipelines[Family.SD1], Family.SD1)
    packed["model.diffusion_model.out.2.weight.absmax"] = torch.ones(4)
    safetensors.torch.save_file(packed, file)
    with pytest.raises(BaseModelError, match="packed 4-bit or 8-bit weights"):
        load(Base(model=str(file), device="cpu"))


UNET = "model.diffusion_model.input_blocks.0.0.weight"
CLIP = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
OTHERS: list[tuple[str, Shapes]] = [
    ("an adapter", {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 8)}),
    ("an adapter", {"unet.down_blocks.0.attentions.0.proj_in.lora_A.weight": (4, 8)}),
    ("an adapter", {"lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_a": (4, 8)}),
    ("an adapter", {"lycoris_mid_block_attentions_0_proj_in.lokr_w1": (4, 8)}),
    ("a VAE alone", {"encoder.down.0.block.0.conv1.weight": (8, 8, 3, 3)}),
    ("a VAE alone", {"first_stage_model.encoder.conv_in.weight": (8, 3, 3, 3)}),
    ("a VAE alone", {"decoder.up_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3)}),
    ("a textual-inversion embedding", {"emb_params": (4, 768)}),
    ("a textual-inversion embedding", {"clip_l": (4, 768), "clip_g": (4, 1280)}),
    ("a textual-inversion embedding", {"<pip>": (1024,)}),
    ("a ControlNet", {"control_model.input_blocks.0.0.weight": (8, 4, 3, 3), UNET: (8, 4, 3, 3)}),
    ("a ControlNet", {"controlnet_cond_embedding.conv_in.weight": (8, 3, 3, 3)}),
    ("an upscaler", {"model.1.sub.0.RDB1.conv1.0.weight": (8, 8, 3, 3)}),
    ("an upscaler", {"body.0.rdb1.conv1.weight": (8, 8, 3, 3)}),
    ("a Flux model", {"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": (8, 8)}),
    ("a Flux model", {"double_blocks.0.img_attn.norm.key_norm.scale": (8,)}),
    ("a Stable Diffusion 3 model",
     {"model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias": (8,)}),
    ("a Stable Cascade model", {"clip_txt_mapper.weight": (8, 8)}),
    ("a Stable Cascade model", {"down_blocks.0.0.channelwise.0.weight": (8, 8)}),
    ("a diffusion transformer", {"adaln_single.linear.weight": (8, 8)}),
    ("an AuraFlow model", {"double_layers.0.attn.w1q.weight": (8, 8)}),
    ("an AnimateDiff motion module", {"down_blocks.0.motion_modules.0.norm.weight": (8,)}),
    ("the UNet of a diffusers model", {"down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3)}),
    ("a text encoder alone", {"text_model.encoder.layers.0.mlp.fc1.weight": (8, 8)}),
    ("a text encoder alone", {"encoder.block.0.layer.0.SelfAttention.q.weight": (8, 8)}),
    ("an inpainting model", {UNET: (8, 9, 3, 3), CLIP: (8, 8)}),
    ("an InstructPix2Pix model", {UNET: (8, 8, 3, 3), CLIP: (8, 8)}),
    ("a base for depth images", {UNET: (8, 5, 3, 3), CLIP: (8, 8)}),
    ("SDXL's refiner", {UNET: (8, 4, 3, 3), "conditioner.embedders.0.model.ln_final.bias": (8,)}),
    ("EDM's noise levels", {UNET: (8, 4, 3, 3), "edm_mean": (1, 4)}),
    ("no text encoder", {UNET: (8, 4, 3, 3), "first_stage_model.encoder.conv_in.bias": (8,)}),
    ("no VAE", {UNET: (8, 4, 3, 3), CLIP: (8, 8)}),
    ("not a Stable Diffusion checkpoint", {"weight": (3, 3)}),
    ("not a Stable Diffusion checkpoint", {}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "shapes"), OTHERS, ids=[f"{i}-{o[0]}" for i, o in enumerate(OTHERS)]
)
def test_what_is_no_base_is_told_by_name(what: str, shapes: Shapes, tmp_path: Path) -> None:
    file = stub(tmp_path / "x.safetensors", shapes)
    with pytest.raises(BaseModelError, match=what) as told:
        load(Base(model=str(file), device="cpu"))
    assert told.value.advice and told.value.advice.startswith("Give ")
    assert str(file) in told.value.what


def test_broken_files_are_refused_before_anything_is_read(
    pipelines: dict[Family, Any], tmp_path: Path
) -> None:
    file = single_files.write(tmp_path / "x.safetensors", pipelines[Family.SD1], Family.SD1)
    whole = file.read_bytes()
    for content, said in (
        (whole[:-100], "cut off: 100 bytes are missing"),
        (whole[:5], "empty or cut off"),
        (b"PK\x03\x04" + bytes(100), "a pickle, whatever its name says"),
        (b"<html>not here</html>", "not a safetensors file"),
        (struct.pack("<Q", 2**40) + b"{" + bytes(50), "header of"),
    ):
        file.write_bytes(content)
        with pytest.raises(BaseModelError, match=said):
            load(Base(model=str(file), device="cpu"))
    pickle = tmp_path / "x.ckpt"
    pickle.write_bytes(b"PK\x03\x04")
    with pytest.raises(BaseModelError, match=r"Get the same model as \.safetensors"):
        load(Base(model=str(pickle), device="cpu"))


def test_a_missing_or_odd_layer_is_named(pipelines: dict[Family, Any], tmp_path: Path) -> None:
    tensors = single_files.original(pipelines[Family.SD1], Family.SD1)
    file = tmp_path / "x.safetensors"
    name = "model.diffusion_model.output_blocks.3.0.in_layers.2.weight"
    safetensors.torch.save_file({k: t for k, t in tensors.items() if k != name}, file)
    with pytest.raises(
        BaseModelError, match=r"there is no up_blocks\.1\.resnets\.0\.conv1\.weight"
    ):
        load(Base(model=str(file), device="cpu"))
    safetensors.torch.save_file(tensors | {name: torch.zeros(1, 2, 3, 3)}, file)
    with pytest.raises(BaseModelError, match=r"is \(1, 2, 3, 3\), not"):
        load(Base(model=str(file), device="cpu"))
    whole = tensors | {name: tensors[name].to(torch.int8)}
    safetensors.torch.save_file(whole, file)
    with pytest.raises(BaseModelError, match=r"conv1\.weight holds whole numbers, torch\.int8"):
        load(Base(model=str(file), device="cpu"))
    few = {k: t for k, t in tensors.items() if ".down." not in k}
    safetensors.torch.save_file(few, file)
    with pytest.raises(BaseModelError, match=r"The vae of .* is not built"):
        load(Base(model=str(file), device="cpu"))


def test_the_tokenizer_is_clips() -> None:
    tokenizer = clip_tokenizer(49408, "<|endoftext|>")
    # Numbers that the released vocabulary gives.
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer.pad_token_id == 49407
    assert clip_tokenizer(49408, "!").pad_token_id == 0
    small = clip_tokenizer(600, "!")
    ids = small("a photo of a cat in München").input_ids
    assert max(ids) == 599
    assert len(ids) > 10
    with pytest.raises(BaseModelError, match="too few"):
        clip_tokenizer(500, "!")


@pytest.mark.parametrize("family", Family, ids=str)
def test_weights_are_read_and_unpacked_as_from_a_folder(
    family: Family, pipelines: dict[Family, Any], tmp_path: Path
) -> None:
    file = single_files.write(tmp_path / "x.safetensors", pipelines[family], family)
    unpack(read_single_file(file), tmp_path / "folder")
    parts = load(Base(model=str(tmp_path / "folder"), device="cpu")).parts
    adapter = random_adapter(parts)
    one, other = (read_weights(place, adapter) for place in (file, tmp_path / "folder"))
    assert one.keys() == other.keys() == adapter.keys()
    assert all(torch.equal(one[path], other[path]) for path in one)
    assert str(describe(tmp_path / "folder")) == str(describe(file))


def test_an_adapter_is_baked_into_a_single_file(
    pipelines: dict[Family, Any], tmp_path: Path
) -> None:
    from trainer.adapter.attach import attach
    from trainer.adapter.bake import bake

    file = single_files.write(tmp_path / "x.safetensors", pipelines[Family.SD2], Family.SD2)
    model = load(Base(model=str(file), device="cpu"))
    adapter = random_adapter(model.parts)
    bake(file, adapter, tmp_path / "baked")
    baked = load(Base(model=str(tmp_path / "baked"), device="cpu"))
    noisy, timesteps = torch.randn(1, 4, 8, 8), torch.tensor([500])
    with attach(model.parts, {"x": adapter}):
        live = model.predict(noisy, timesteps, model.encode_prompts(["a cat"]))
    read = baked.predict(noisy, timesteps, baked.encode_prompts(["a cat"]))
    torch.testing.assert_close(read, live, rtol=1e-3, atol=1e-4)


def test_an_adapter_given_as_a_base_is_told_so(
    tmp_path: Path, pipelines: dict[Family, Any]
) -> None:
    file = tmp_path / "adapter.safetensors"
    save(random_adapter({"unet": pipelines[Family.SD1].unet}), file,
         Header(name="x", family=Family.SD1))  # fmt: skip
    with pytest.raises(BaseModelError, match=r"an adapter .* not a base"):
        describe(file)
