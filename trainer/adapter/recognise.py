"""Which family of Stable Diffusion an adapter was made for, from its names, shapes and metadata.

No torch here. Widths decide only where they are those of the released models, so that small models
with the same layers stay loadable.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from trainer.adapter.keys import split
from trainer.model.bases import Family

Shapes = Mapping[str, tuple[int, ...]]

# Width of the text that cross-attention reads in the released models.
_TEXT_WIDTHS = {768: Family.SD1, 1024: Family.SD2, 2048: Family.SDXL}
_CROSS_ATTENTION = re.compile(r"attn2\.to_[kv]$")
_DEEP_TRANSFORMER = re.compile(r"\.transformer_blocks\.[1-9]")
_TEXT_LAYER = re.compile(r"text_encoder\.text_model\.encoder\.layers\.(\d+)\.")
_SD1_TEXT_LAYERS = 12


def recognise_family(shapes: Shapes, metadata: Mapping[str, str]) -> Family | None:
    """The family of an adapter file, given the shapes of its tensors by key, and its metadata.

    In order: what our own header says; a second text encoder; the width of cross-attention where it
    is that of a released model; what other trainers' headers say; weaker signs in the names. None
    if nothing tells, as for an adapter on self-attention alone without metadata.
    """
    own = metadata.get("atelier.family")
    if own in tuple(Family):
        return Family(own)
    downs = dict(_inputs(shapes))
    if any(path.startswith("text_encoder_2.") for path in downs):
        return Family.SDXL
    widths = {shape[1] for path, shape in downs.items()
              if _CROSS_ATTENTION.search(path) and len(shape) > 1}  # fmt: skip
    if len(widths) == 1 and (family := _TEXT_WIDTHS.get(widths.pop())):
        return family
    return family_in_metadata(metadata) or _from_names(downs)


def family_in_metadata(metadata: Mapping[str, str]) -> Family | None:
    """What the header of kohya's or of another trainer says of the base."""
    version = metadata.get("ss_base_model_version", "").lower()
    architecture = metadata.get("modelspec.architecture", "").lower()
    if version.startswith("sdxl") or architecture.startswith("stable-diffusion-xl"):
        return Family.SDXL
    if version.startswith(("sd_v2", "sd_2")) or architecture.startswith("stable-diffusion-v2"):
        return Family.SD2
    if metadata.get("ss_v2") == "True":
        return Family.SD2
    if version.startswith(("sd_v1", "sd_1")) or architecture.startswith("stable-diffusion-v1"):
        return Family.SD1
    return None


def _inputs(shapes: Shapes) -> list[tuple[str, tuple[int, ...]]]:
    """The tensors that read a layer's input, by module path."""
    found = []
    for key, shape in shapes.items():
        named = split(key)
        if named and named[1] in ("down", "hada_w1_b", "diff", "lokr_w1", "lokr_w1_a"):
            found.append((named[0], shape))
    return found


def _from_names(downs: Mapping[str, tuple[int, ...]]) -> Family | None:
    """Signs that hold in small models too: layers that only one family has, and their kind."""
    for path, shape in downs.items():
        if path.startswith("unet.add_embedding.") or _DEEP_TRANSFORMER.search(path):
            return Family.SDXL
        if match := _TEXT_LAYER.match(path):
            if int(match[1]) >= _SD1_TEXT_LAYERS:
                return Family.SD2
        elif path.endswith((".proj_in", ".proj_out")) and len(shape) == 4:
            return Family.SD1  # the later families project with linear layers
    if any(path.startswith("unet.up_blocks.3.") for path in downs) and any(
        path.endswith((".proj_in", ".proj_out")) for path in downs
    ):
        return Family.SD2
    return None
