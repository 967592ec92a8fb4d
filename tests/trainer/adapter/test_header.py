"""What files say of themselves, which family they are for, and whether they fit a base."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.adapter import families
from trainer.adapter.fit import fitted, mismatch
from trainer.adapter.header import Header
from trainer.adapter.keys import kohya_name
from trainer.adapter.recognise import Shapes, recognise_family
from trainer.model.bases import Family

FULL = Header(
    name="my style",
    family=Family.SD2,
    rank=8,
    alpha=4.5,
    prediction_type="v_prediction",
    trigger_words=("xyz", "in the style of, well, xyz"),
    base="/home/somebody/models/base",
    base_hash="ab" * 32,
    resolution=640,
    images=12,
    steps=1500,
    seed=7,
    settings=json.dumps(
        {
            "base": {"model": "/home/somebody/models/base"},
            "dataset": {"folder": "/home/somebody/pictures", "resolution": 640},
            "samples": {"prompts": ["a secret"], "negative_prompt": "another secret", "steps": 5},
        }
    ),
    description="What it does",
    author="me",
    license="CC0",
    created=datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC),
    tags={"1_secret": {"a secret tag": 3}},
    folders=("/home/somebody/pictures",),
    other={"note": "kept"},
)


def test_a_header_is_read_back_as_it_was_written() -> None:
    assert Header.from_metadata(FULL.to_metadata()) == FULL


def test_a_private_header_holds_no_path_caption_or_tag() -> None:
    metadata = FULL.to_metadata(private=True)
    whole = json.dumps(metadata)
    assert "secret" not in whole
    assert "somebody" not in whole
    read = Header.from_metadata(metadata)
    assert read.trigger_words == FULL.trigger_words
    assert read.base == "base"
    assert json.loads(read.settings or "")["dataset"] == {"folder": None, "resolution": 640}


def test_hub_ids_are_not_private() -> None:
    header = Header(
        "a", Family.SD1, base="owner/name", settings='{"base": {"model": "owner/name"}}'
    )
    read = Header.from_metadata(header.to_metadata(private=True))
    assert read.base == "owner/name"
    assert json.loads(read.settings or "")["base"]["model"] == "owner/name"


def test_everything_written_is_text() -> None:
    assert all(isinstance(v, str) for v in FULL.to_metadata().values())
    empty = Header("a", None).to_metadata()
    assert "modelspec.architecture" not in empty
    assert "ss_base_model_version" not in empty


def test_kohya_s_own_headers_are_read() -> None:
    read = Header.from_metadata(
        {
            "ss_output_name": "theirs", "ss_base_model_version": "sdxl_base_v1-0",
            "ss_network_dim": "32", "ss_network_alpha": "16.0", "ss_resolution": "(1024, 1024)",
            "ss_num_train_images": "40", "ss_steps": "2000", "ss_sd_model_name": "base.safetensors",
            "ss_tag_frequency": '{"5_x": {"x": 40}}', "ss_seed": "None", "strange": "kept",
        }
    )  # fmt: skip
    assert read.family is Family.SDXL
    assert (read.rank, read.alpha, read.resolution, read.images) == (32, 16.0, 1024, 40)
    assert read.tags == {"5_x": {"x": 40}}
    assert read.seed is None
    assert read.other == {"strange": "kept"}


@given(st.dictionaries(st.sampled_from(sorted(FULL.to_metadata())), st.text(max_size=30)))
def test_nonsense_in_a_header_is_taken_as_absent(metadata: dict[str, str]) -> None:
    Header.from_metadata(metadata).to_metadata()


def kohya_shapes(family: Family) -> Shapes:
    return {
        f"{kohya_name(path, family)}.lora_down.weight": (4, *shape[1:])
        for path, shape in families.layer_shapes(family).items()
    }


@pytest.mark.parametrize("family", Family)
def test_small_models_are_recognised_by_their_layers(family: Family) -> None:
    assert recognise_family(kohya_shapes(family), {}) is family


@pytest.mark.parametrize(
    ("width", "family"), [(768, Family.SD1), (1024, Family.SD2), (2048, Family.SDXL), (128, None)]
)
def test_released_models_are_recognised_by_their_text_width(
    width: int, family: Family | None
) -> None:
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    assert recognise_family({f"{name}.lora_down.weight": (4, width)}, {}) is family
    assert recognise_family({f"{name}.hada_w1_b": (4, width)}, {}) is family


def test_our_own_header_decides_and_others_come_after_shapes() -> None:
    shapes = {
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": (4, 768)
    }
    assert recognise_family(shapes, {"atelier.family": "sd2"}) is Family.SD2
    assert recognise_family(shapes, {"ss_base_model_version": "sdxl_base_v1-0"}) is Family.SD1
    unknown = {"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_k.lora_A.weight": (4, 64)}
    assert recognise_family(unknown, {}) is None
    assert recognise_family(unknown, {"ss_v2": "True"}) is Family.SD2
    assert recognise_family(unknown, {"ss_base_model_version": "sd1.5"}) is Family.SD1
    xl = {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}
    assert recognise_family(unknown, xl) is Family.SDXL
    assert recognise_family(unknown, {"atelier.family": "nonsense"}) is None


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("other", Family)
def test_the_wrong_base_is_told_in_one_sentence(family: Family, other: Family) -> None:
    adapter = families.random_adapter(families.layer_shapes(family), rank=1)
    said = mismatch(adapter, families.layer_shapes(other))
    if family is other:
        assert said is None
    else:
        assert said is not None
        assert family.full_name in said
        assert "\n" not in said


def test_a_layer_of_another_width_is_named() -> None:
    adapter = families.random_adapter(families.SMALL)
    path = next(iter(adapter))
    said = mismatch(adapter, {**families.SMALL, path: (16, 20)}, Family.SD1)
    assert said is not None
    assert path in said
    assert "16×16" in said and "16×20" in said


def test_single_pixel_convolutions_fit_linear_factors() -> None:
    shapes = {"unet.a": (6, 5, 1, 1), "unet.b": (6, 5)}
    adapter = families.random_adapter({"unet.a": (6, 5), "unet.b": (6, 5, 1, 1)})
    assert mismatch(adapter, shapes) is None
    for path, layer in fitted(adapter, shapes).items():
        assert layer.delta().shape == shapes[path]
        assert layer.delta().flatten().equal(adapter[path].delta().flatten())


def test_headers_are_read_without_torch() -> None:
    script = (
        "import sys, trainer.adapter.header, trainer.adapter.keys, trainer.adapter.blocks, "
        "trainer.adapter.peft; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
