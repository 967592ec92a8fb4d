"""What is told before a run is what the run then trains and writes, for every kind and target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trainer import settings
from trainer.adapter.adapter import save
from trainer.adapter.attach import attach_new, read_back
from trainer.adapter.footprint import footprint
from trainer.adapter.header import Header
from trainer.fields import nest
from trainer.model.load import load
from trainer.model.shapes import outline
from trainer.precision import DTYPES
from trainer.settings_file import parse


@pytest.fixture(scope="module")
def model(small_base: Path) -> Any:
    return load(settings.Base(model=str(small_base)))


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
@pytest.mark.parametrize(
    ("adapter", "precision"),
    [
        ({"targets": "attention"}, "fp16"),
        ({"targets": "attention-ff", "text_encoder": False}, "fp32"),
        ({"targets": "linear", "rank": 7, "text_encoder_rank": 2}, "bf16"),
        ({"targets": "linear-conv", "rank_stabilised": True}, "fp16"),
        ({"layers": ("*.conv1", "unet.mid_block"), "block_ranks": ("unet.mid_block=3",)}, "fp16"),
    ],
)  # fmt: skip
def test_parameters_and_bytes_are_known_before(
    small_base: Path, tmp_path: Path, model: Any, kind: str, adapter: dict[str, Any], precision: Any
) -> None:
    values = {f"adapter.{name}": value for name, value in adapter.items()}
    wanted = parse(nest({"base.model": str(small_base), "adapter.kind": kind, "adapter.rank": 4,
                         "output.precision": precision, **values}))  # fmt: skip
    base = outline(str(small_base))
    assert base is not None
    told = footprint(wanted, base)
    parts = model.parts if wanted.adapter.text_encoder else {"unet": model.unet}
    before = sum(p.numel() for part in model.parts.values() for p in part.parameters())
    assert told.base_parameters == before
    with attach_new(parts, wanted.adapter, torch.Generator()) as attachment:
        factors = [f for layer in attachment.layers.values() for f in layer.factors.values()]
        assert told.parameters == sum(factor.numel() for factor in factors)
        for factor in factors:
            factor.data.normal_()
        header = Header("adapter", model.family, base=str(small_base), base_hash="f" * 64,
                        resolution=512, images=12, steps=1500, seed=0,
                        settings=wanted.to_json())  # fmt: skip
        file = tmp_path / "a.safetensors"
        save(read_back(attachment), file, header, precision=DTYPES[precision])
    assert told.file_bytes == pytest.approx(file.stat().st_size, abs=64)
