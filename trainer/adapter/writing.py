"""An adapter written so that every tool loads it at the scale it was made for.

The recipe, tried against diffusers, ComfyUI and Forge: kohya keys, diffusers' block names for
Stable Diffusion 1 and 2 and the original ones for SDXL, and one alpha in the whole file, because
diffusers applies a single one to most layers whatever the others say.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save as serialise
from torch import Tensor

from trainer.adapter.container import MAX_HEADER_BYTES
from trainer.adapter.header import Header
from trainer.adapter.keys import Form, kohya_key, kohya_name
from trainer.adapter.kinds import Layer, LowRank, kind_of
from trainer.errors import AdapterError
from trainer.files import replace_atomically


def save(
    adapter: Mapping[str, Layer],
    path: Path,
    header: Header,
    *,
    precision: torch.dtype = torch.float16,
    form: Form = "kohya",
) -> None:
    """Writes an adapter of any kind to `path`, whole or not at all; the folder must exist.

    The file's rank and alpha are those of most layers, whatever `header` says. In the diffusers
    form the scale is folded into the factors, since that form has no alpha.

    Raises:
        AdapterError: if it is empty, a value is not finite in `precision`, a layer has no name in
            the form asked for, or the metadata is too large.
    """
    if not adapter:
        raise AdapterError(f"There is nothing to write to {path}: the adapter has no layers.")
    alpha = common_alpha(adapter, precision)
    if form == "kohya":
        tensors = _kohya_tensors(adapter, header, alpha, precision)
    else:
        tensors = _diffusers_tensors(adapter, precision)
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise AdapterError(
                f"{path} is not written: {name} has values that are not finite in {precision}.",
                "The adapter is broken, or needs a precision with a wider range, such as fp32.",
            )
    ranks = Counter(rank for rank, _ in _natural(adapter))
    rank = ranks.most_common(1)[0][0] if ranks else None
    kind = Counter(kind_of(layer).name for layer in adapter.values()).most_common(1)[0][0]
    stated = replace(header, rank=rank, alpha=alpha if form == "kohya" else rank, kind=kind)
    header_bytes, body = _content(tensors, stated.to_metadata())
    if len(header_bytes) > MAX_HEADER_BYTES:
        raise AdapterError(
            f"{path} is not written: its metadata takes {len(header_bytes)} bytes, and tools read "
            f"{MAX_HEADER_BYTES} at most.",
            "Leave out tags, or set output.private.",
        )

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(header_bytes)
            file.write(body)

    replace_atomically(path, write)


def common_alpha(adapter: Mapping[str, Layer], precision: torch.dtype) -> float:
    """The one alpha of a file: that of most layers, so that most are written as they are.

    Rounded to `precision`, in which it is stored; 1 if no layer has a positive one.
    """
    counts = Counter(alpha for _, alpha in _natural(adapter) if alpha > 0)
    if not counts:
        return 1.0
    most = max(counts, key=lambda alpha: (counts[alpha], alpha))
    return float(torch.tensor(most).to(precision))


def _natural(adapter: Mapping[str, Layer]) -> list[tuple[int, float]]:
    """Rank and alpha of each layer that has them."""
    found = (kind_of(layer).natural(layer) for layer in adapter.values())
    return [natural for natural in found if natural is not None]


def _kohya_tensors(
    adapter: Mapping[str, Layer], header: Header, alpha: float, precision: torch.dtype
) -> dict[str, Tensor]:
    if header.family is None:
        raise AdapterError(
            "The adapter's family is not known, and with it the names of its layers.",
            "Say whether it is for sd1, sd2 or sdxl.",
        )
    tensors: dict[str, Tensor] = {}
    for path, layer in adapter.items():
        name = kohya_name(path, header.family)
        if name is None:
            raise AdapterError(
                f"The layer {path} has no name in kohya's form for {header.family.full_name}.",
                "Was the adapter made for another base?",
            )
        kind = kind_of(layer)
        for role, tensor in kind.write(layer, alpha).items():
            stored = torch.float32 if role in kind.wide else precision
            tensors[kohya_key(name, role)] = tensor.to("cpu", stored).contiguous()
        tensors[kohya_key(name, "alpha")] = torch.tensor(alpha).to(precision)
    return tensors


def _diffusers_tensors(adapter: Mapping[str, Layer], precision: torch.dtype) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path, layer in adapter.items():
        if not isinstance(layer, LowRank):
            raise AdapterError(
                f"diffusers' form holds plain LoRA, and {path} is {type(layer).__name__}.",
                "Convert it to plain LoRA first.",
            )
        tensors[f"{path}.lora_A.weight"] = _stored(layer.down, 1.0, precision)
        tensors[f"{path}.lora_B.weight"] = _stored(layer.up, layer.scale, precision)
    return tensors


def _stored(tensor: Tensor, factor: float, precision: torch.dtype) -> Tensor:
    """`factor · tensor` computed in fp32 and rounded once, on the CPU, with storage of its own."""
    wide = tensor.detach().to(device="cpu", dtype=torch.float32)
    return (wide * factor).to(precision).contiguous()


def _content(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[bytes, memoryview]:
    """The file's header and the rest, with the two hashes by which other tools know it.

    `sshs_model_hash` is of the tensors alone, and so survives edits of the metadata. The legacy one
    is of the bytes from 0x100000 to 0x110000 of a file with only `ss_` metadata.
    """
    kohya = {key: text for key, text in metadata.items() if key.startswith("ss_")}
    plain = serialise(dict(tensors), metadata=kohya)
    (length,) = struct.unpack("<Q", plain[:8])
    body = memoryview(plain)[8 + length :]
    tree = json.loads(plain[8 : 8 + length])
    tree["__metadata__"] = {
        **metadata,
        "sshs_model_hash": hashlib.sha256(body).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(plain[0x100000:0x110000]).hexdigest()[:8],
    }
    text = json.dumps(tree, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors stay aligned
    return struct.pack("<Q", len(text)) + text, body
