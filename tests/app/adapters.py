"""Small adapter files for tests, written without torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from trainer.adapter.header import Header
from trainer.files import write_atomically
from trainer.model.bases import Family

_MODULE = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
_RANK, _INPUTS, _OUTPUTS = 2, 768, 320


def write_adapter(path: Path, name: str = "test", trigger: str = "pip") -> Path:
    """A valid file of one SD 1.x layer, all zeros, with a header that names the embedded base."""
    header = Header(name=name, family=Family.SD1, rank=_RANK, alpha=_RANK, base="embedded",
                    trigger_words=(trigger,))  # fmt: skip
    shapes = {
        f"{_MODULE}.lora_down.weight": [_RANK, _INPUTS],
        f"{_MODULE}.lora_up.weight": [_OUTPUTS, _RANK],
        f"{_MODULE}.alpha": [],
    }
    tree: dict[str, object] = {"__metadata__": header.to_metadata()}
    end = 0
    for key, shape in shapes.items():
        start = end
        count = shape[0] * shape[1] if shape else 1
        end += 2 * count
        tree[key] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, struct.pack("<Q", len(text)) + text + bytes(end))
    return path
