"""Names: every layer of every family has one, and every spelling leads back to it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.adapter import families
from trainer.adapter import keys
from trainer.model.bases import Family

ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
TEXT = "text_model.encoder.layers.3.self_attn.q_proj"


@pytest.mark.parametrize("family", Family)
def test_every_layer_of_a_unet_has_a_name_that_leads_back(family: Family) -> None:
    for path in families.layer_shapes(family):
        name = keys.kohya_name(path, family)
        assert name is not None
        assert keys.canonical(name) == path
        diffusers_style = "lora_unet_" + path.removeprefix("unet.").replace(".", "_")
        assert keys.canonical(diffusers_style) == path
        original = keys.to_sgm(path.removeprefix("unet."), family)
        assert original is not None
        assert keys.canonical(f"diffusion_model.{original}") == path


@pytest.mark.parametrize("family", Family)
def test_names_of_different_layers_differ(family: Family) -> None:
    paths = families.layer_shapes(family)
    assert len({keys.kohya_name(path, family) for path in paths}) == len(paths)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("input_blocks_4_1_transformer_blocks_0_attn1_to_q",
         "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"),
        ("input_blocks_8_1_proj_in", "down_blocks.2.attentions.1.proj_in"),
        ("input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"),
        ("input_blocks_7_0_in_layers_2", "down_blocks.2.resnets.0.conv1"),
        ("input_blocks_7_0_skip_connection", "down_blocks.2.resnets.0.conv_shortcut"),
        ("middle_block_1_transformer_blocks_9_ff_net_0_proj",
         "mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj"),
        ("middle_block_2_out_layers_3", "mid_block.resnets.1.conv2"),
        ("output_blocks_2_2_conv", "up_blocks.0.upsamplers.0.conv"),
        ("output_blocks_2_1_conv", "up_blocks.0.upsamplers.0.conv"),
        ("output_blocks_5_1_transformer_blocks_1_attn2_to_out_0",
         "up_blocks.1.attentions.2.transformer_blocks.1.attn2.to_out.0"),
        ("output_blocks_0_0_emb_layers_1", "up_blocks.0.resnets.0.time_emb_proj"),
        ("time_embed_2", "time_embedding.linear_2"),
        ("label_emb_0_0", "add_embedding.linear_1"),
        ("out_2", "conv_out"),
    ],
)  # fmt: skip
def test_original_unet_names(name: str, module: str) -> None:
    assert keys.canonical(f"lora_unet_{name}") == f"unet.{module}"


@pytest.mark.parametrize(
    ("key", "path", "role"),
    [
        (f"lora_unet_{ATTENTION.replace('.', '_')}.lora_down.weight", f"unet.{ATTENTION}", "down"),
        (f"lora_unet_{ATTENTION.replace('.', '_')}.alpha", f"unet.{ATTENTION}", "alpha"),
        (f"lora_te_{TEXT.replace('.', '_')}.lora_up.weight", f"text_encoder.{TEXT}", "up"),
        (f"lora_te1_{TEXT.replace('.', '_')}.lora_up.weight", f"text_encoder.{TEXT}", "up"),
        (f"lora_te2_{TEXT.replace('.', '_')}.dora_scale", f"text_encoder_2.{TEXT}", "dora_scale"),
        (f"unet.{OUT}.lora_A.weight", f"unet.{OUT}", "down"),
        (f"unet.{OUT}.lora_B.default_0.weight", f"unet.{OUT}", "up"),
        (f"unet.{OUT}.lora.down.weight", f"unet.{OUT}", "down"),
        (f"unet.{OUT}.lora_magnitude_vector", f"unet.{OUT}", "magnitude"),
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight",
         f"unet.{OUT}", "up"),
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
         f"unet.{ATTENTION}", "down"),
        (f"text_encoder.{TEXT}.lora_linear_layer.up.weight", f"text_encoder.{TEXT}", "up"),
        ("text_encoder.text_model.encoder.layers.3.self_attn.to_q_lora.up.weight",
         f"text_encoder.{TEXT}", "up"),
        ("text_encoder.encoder.layers.3.self_attn.q_proj.lora_A.weight",
         f"text_encoder.{TEXT}", "down"),
        (f"base_model.model.{ATTENTION}.lora_A.weight", f"unet.{ATTENTION}", "down"),
        (f"base_model.model.{TEXT}.lora_B.weight", f"text_encoder.{TEXT}", "up"),
        (f"text_encoders.clip_g.transformer.{TEXT}.lora_up.weight",
         f"text_encoder_2.{TEXT}", "up"),
        (f"lycoris_{ATTENTION.replace('.', '_')}.hada_w1_a", f"unet.{ATTENTION}", "hada_w1_a"),
        (f"lora_unet_{ATTENTION.replace('.', '_')}.lokr_w2", f"unet.{ATTENTION}", "lokr_w2"),
    ],
)  # fmt: skip
def test_spellings(key: str, path: str, role: str) -> None:
    assert keys.split(key) == (path, role)


@pytest.mark.parametrize(
    "key",
    [
        "",
        ".",
        "lora_unet_.alpha",
        "model.diffusion_model.out.2.weight",
        "bundle_emb.x.string_to_param",
        "lora_unet_Something-Else.lora_up.weight",
        "unet..lora_A.weight",
        "first.alpha",
    ],
)
def test_what_is_not_understood_has_no_name(key: str) -> None:
    assert keys.split(key) is None


def test_layers_without_a_place_in_a_family_have_no_name() -> None:
    assert keys.kohya_name("unet.somewhere.else", Family.SDXL) is None
    assert keys.kohya_name("unet.down_blocks.x.attentions.²." + "9" * 5000, Family.SDXL) is None
    assert keys.kohya_name("vae.decoder.conv_in", Family.SD1) is None
    assert keys.kohya_name("unet.down_blocks.0.strange_name.to_q", Family.SD1) is None


def test_kernels_are_known_from_names() -> None:
    for family in Family:
        for path, shape in families.layer_shapes(family).items():
            assert keys.kernel_size(path) == (shape[2] if len(shape) == 4 else 1), path


@settings(max_examples=50)
@given(st.text(alphabet="lora_unetkhyd.0129ABw-é", max_size=60))
def test_no_key_is_too_strange(text: str) -> None:
    for ending in ("", ".lora_down.weight", ".alpha", "_lora.up.weight"):
        named = keys.split(text + ending)
        assert named is None or named[0].partition(".")[2]
