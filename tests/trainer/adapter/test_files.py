"""Files of every form and family, written and read again."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.trainer.adapter import families
from trainer.adapter.adapter import LowRank, load, save
from trainer.adapter.header import Header, read_header
from trainer.adapter.keys import Form
from trainer.errors import AdapterError
from trainer.model.bases import Family

FORMS: tuple[Form, ...] = ("kohya", "diffusers")
ALPHAS = st.floats(-4000, -1e-3) | st.just(0.0) | st.floats(1e-3, 4000)
PRECISIONS = (torch.float16, torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    ("family", "form", "precision"),
    [
        *((family, form, torch.float16) for family in Family for form in FORMS),
        *((Family.SD1, form, precision) for form in FORMS for precision in PRECISIONS[1:]),
    ],
    ids=str,
)
def test_what_is_read_writes_the_same_tensors(
    tmp_path: Path, family: Family, form: Form, precision: torch.dtype
) -> None:
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    adapter = families.random_adapter(families.layer_shapes(family), rank=2, alpha=2.0)
    save(adapter, first, Header("a", family), precision=precision, form=form)
    loaded = load(first)
    assert loaded.family is family
    assert loaded.form == form
    assert not loaded.unused
    assert loaded.adapter.keys() == adapter.keys()
    save(loaded.adapter, second, loaded.header, precision=precision, form=form)
    one, two = load_file(first), load_file(second)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert loaded.header == load(second).header


@pytest.mark.parametrize("form", FORMS)
def test_every_layer_keeps_its_scale_under_one_alpha(tmp_path: Path, form: Form) -> None:
    file = tmp_path / "a.safetensors"
    adapter = families.random_adapter(families.SMALL, mixed=True)
    save(adapter, file, Header("a", Family.SD1), precision=torch.float32, form=form)
    for path, layer in load(file).adapter.items():
        assert families.relative(layer.delta(), adapter[path].delta()) < 1e-6
    alphas = {float(t) for key, t in load_file(file).items() if key.endswith(".alpha")}
    assert len(alphas) == (1 if form == "kohya" else 0)


@settings(max_examples=30)
@given(alphas=st.lists(ALPHAS, min_size=1, max_size=5))
def test_any_alphas_survive(tmp_path_factory: pytest.TempPathFactory, alphas: list[float]) -> None:
    file = tmp_path_factory.mktemp("alphas") / "a.safetensors"
    generator = torch.Generator().manual_seed(0)
    paths = list(families.SMALL)
    adapter = {
        path: families.low_rank((6, 6), 2, alpha, generator)
        for path, alpha in zip(paths, alphas, strict=False)
    }
    save(adapter, file, Header("a", Family.SD1), precision=torch.float32)
    for path, layer in load(file).adapter.items():
        wanted = adapter[path].delta()
        assert torch.allclose(
            layer.delta(), wanted, rtol=1e-5, atol=1e-6 * abs(wanted).max().item()
        )


def test_layers_of_our_own_need_no_text_model_level(tmp_path: Path) -> None:
    """Both spellings of the text encoder's layers, and of its file keys, are one layer."""
    file = tmp_path / "a.safetensors"
    down, up = torch.ones(2, 4), torch.ones(4, 2)
    keys = (
        "text_encoder.encoder.layers.0.mlp.fc1",
        "text_encoder.text_model.encoder.layers.0.mlp.fc2",
    )
    save_file(
        {f"{key}.lora_{side}.weight": tensor.clone()
         for key in keys for side, tensor in (("A", down), ("B", up))},
        file,
    )  # fmt: skip
    assert list(load(file).adapter) == [
        f"text_encoder.text_model.encoder.layers.0.mlp.fc{index}" for index in (1, 2)
    ]


def old_attention(path: str, side: str) -> str:
    """diffusers before 0.20: processors in the UNet, and `to_q_lora` in the text encoder too."""
    up_or_down = {"A": "down", "B": "up"}[side]
    parent, _, last = path.removesuffix(".0").rpartition(".")
    names = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
    processor = ".processor" if path.startswith("unet.") else ""
    return f"{parent}{processor}.{names.get(last, last)}_lora.{up_or_down}.weight"


SPELLINGS = {
    "linear-layer": lambda path, side: (
        f"{path}.lora_linear_layer.{'down' if side == 'A' else 'up'}.weight"
    ),
    "lora-down": lambda path, side: f"{path}.lora.{'down' if side == 'A' else 'up'}.weight",
    "named": lambda path, side: f"{path}.lora_{side}.default_0.weight",
    "peft": lambda path, side: f"base_model.model.{path.partition('.')[2]}.lora_{side}.weight",
    "old": old_attention,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_older_forms_hold_the_same_adapter(tmp_path: Path, spelling: str) -> None:
    file = tmp_path / "a.safetensors"
    attention = "unet.up_blocks.1.attentions.2.transformer_blocks.0.attn2"
    text = "text_encoder.text_model.encoder.layers.1.self_attn"
    adapter = families.random_adapter(
        {f"{attention}.to_q": (6, 5), f"{attention}.to_out.0": (5, 6), f"{text}.q_proj": (4, 4),
         f"{text}.out_proj": (4, 4)},
        rank=2, alpha=2.0,
    )  # fmt: skip
    tensors = {}
    for path, layer in adapter.items():
        tensors[SPELLINGS[spelling](path, "A")] = layer.down
        tensors[SPELLINGS[spelling](path, "B")] = layer.up
    save_file(tensors, file)
    loaded = load(file)
    assert not loaded.unused
    assert loaded.form == "diffusers"
    assert loaded.adapter.keys() == adapter.keys()
    for path, layer in loaded.adapter.items():
        assert torch.equal(layer.delta(), adapter[path].delta())


def test_small_factors_of_an_impossible_weight_are_refused(tmp_path: Path) -> None:
    """A file of a megabyte must not ask for a terabyte."""
    file = tmp_path / "a.safetensors"
    name, side = "lora_unet_mid_block_attentions_0_proj_in", 2**17
    tall, wide = torch.ones(side, 1), torch.ones(1, side)
    kinds = {
        "lora": {"lora_up.weight": tall, "lora_down.weight": wide},
        "dora": {"lora_up.weight": tall, "lora_down.weight": wide, "dora_scale": wide},
        "loha": {"hada_w1_a": tall, "hada_w1_b": wide, "hada_w2_a": tall, "hada_w2_b": wide},
        "lokr": {"lokr_w1": tall[:1], "lokr_w2_a": tall, "lokr_w2_b": wide},
        "lokr-left": {"lokr_w1_a": tall, "lokr_w1_b": wide, "lokr_w2": tall[:1]},
        "mid": {
            "lora_up.weight": torch.ones(1, side, 1, 1),
            "lora_mid.weight": torch.ones(side, 1, 1, 1),
            "lora_down.weight": wide.reshape(1, side, 1, 1),
        },
    }
    for kind, tensors in kinds.items():
        save_file({f"{name}.{role}": t.clone() for role, t in tensors.items()}, file)
        with pytest.raises(AdapterError, match="no base has"):
            load(file)
            pytest.fail(kind)


def test_metadata_that_tools_could_not_read_is_not_written(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    adapter = families.random_adapter(families.SMALL)
    tags = {"1_x": {f"tag {index}": index for index in range(300_000)}}
    save(adapter, file, Header("a", Family.SD1, tags=tags))
    kept = load(file).header.tags["1_x"]
    assert len(kept) == 5000
    assert min(kept.values()) == 295_000
    with pytest.raises(AdapterError, match="metadata"):
        save(adapter, file, Header("a", Family.SD1, description="x" * 2**23))


def test_a_missing_alpha_means_scale_one(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    name = "lora_unet_mid_block_attentions_0_proj_in"
    save_file(
        {
            f"{name}.lora_down.weight": torch.ones(2, 3),
            f"{name}.lora_up.weight": torch.ones(4, 2),
            "mystery": torch.ones(1),
            "lora_unet_mid_block_attentions_0_proj_out.alpha": torch.ones(()),
        },
        file,
    )
    loaded = load(file)
    assert next(iter(loaded.adapter.values())).scale == 1
    assert set(loaded.unused) == {
        "mystery",
        "lora_unet_mid_block_attentions_0_proj_out.alpha",
    }


def test_values_that_do_not_fit_the_precision_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    path = next(iter(families.SMALL))
    too_large = {path: LowRank(torch.full((2, 4), 1e6), torch.ones(4, 2), 2.0)}
    with pytest.raises(AdapterError, match="not finite"):
        save(too_large, file, Header("a", Family.SD1))
    assert not list(tmp_path.iterdir())
    save(too_large, file, Header("a", Family.SD1), precision=torch.float32)
    broken = {path: LowRank(torch.full((2, 4), torch.nan), torch.ones(4, 2), 2.0)}
    before = file.read_bytes()
    with pytest.raises(AdapterError, match="not finite"):
        save(broken, file, Header("a", Family.SD1), precision=torch.float32)
    assert file.read_bytes() == before


def test_what_has_no_name_is_not_written(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    layer = families.low_rank((4, 4), 2, 2.0, torch.Generator())
    with pytest.raises(AdapterError, match=r"unet\.nowhere\.at_all"):
        save({"unet.nowhere.at_all": layer}, file, Header("a", Family.SDXL))
    with pytest.raises(AdapterError, match="no layers"):
        save({}, file, Header("a", Family.SD1))
    with pytest.raises(AdapterError, match="family"):
        save({next(iter(families.SMALL)): layer}, file, Header("a", None))
    assert not file.exists()


def test_headers_tell_without_tensors(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    adapter = families.random_adapter(families.SMALL, rank=3, alpha=1.5)
    save(adapter, file, Header("mine", Family.SD2, trigger_words=("one", "two words")))
    found = read_header(file)
    assert found.family is Family.SD2
    assert (found.rank, found.alpha, found.dtype, found.modules) == (3, 1.5, "F16", len(adapter))
    assert found.parts == {"unet": 4, "text_encoder": 1}
    assert found.kinds == {"LoRA": len(adapter)}
    assert found.header.trigger_words == ("one", "two words")
    assert found.header.name == "mine"
    wanted = sum(layer.down.numel() + layer.up.numel() for layer in adapter.values())
    assert found.parameters == wanted


def test_a_header_is_read_without_the_rest_of_the_file(tmp_path: Path) -> None:
    """Listing a library of large files must not read them: here a sparse one of 8 GB."""
    file = tmp_path / "large.safetensors"
    name = "lora_unet_mid_block_attentions_0_proj_in"
    half = 2**32
    header = json.dumps(
        {
            f"{name}.lora_down.weight": entry((2**20, 2**10), 0, half, "F32"),
            f"{name}.lora_up.weight": entry((2**10, 2**20), half, 2 * half, "F32"),
        }
    ).encode()
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(header)) + header)
        out.truncate(8 + len(header) + 2 * half)
    began = time.process_time()
    assert read_header(file).rank == 2**20
    assert time.process_time() - began < 0.5


def entry(shape: tuple[int, ...], begin: int, end: int, dtype: str) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
