"""Which family of Stable Diffusion an adapter was made for, from its names, shapes and metadata.

No torch here. Widths decide only where they are those of the released models, so that small models
with the same layers stay loadable.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from trainer.adapter.keys import split
from trainer.model.bases import Family

Shapes = Mapping[str, tuple[int, ...]]

# Width of the text that cross-attention reads in the released models.
_TEXT_WIDTHS = {768: Family.SD1, 1024: Family.SD2, 2048: Family.SDXL}
_CROSS_ATTENTION = re.compile(r"attn2\.to_[kv]$")
_DEEP_TRANSFORMER = re.compile(r"\.transformer_blocks\.[1-9]")
_TEXT_LAYER = re.compile(r"text_encoder\.text_model\.encoder\.layers\.(\d{1,3})\.")
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
    downs = _of_roles(shapes, ("down", "diff", "hada_w1_b", "lokr_w1", "lokr_w1_a"))
    if any(path.startswith("text_encoder_2.") for path in downs):
        return Family.SDXL
    widths = {shape[1] for path, shape in downs.items()
              if _CROSS_ATTENTION.search(path) and len(shape) > 1}  # fmt: skip
    if len(widths) == 1 and (family := _TEXT_WIDTHS.get(widths.pop())):
        return family
    plain = _of_roles(shapes, ("down", "diff"))
    return family_in_metadata(metadata) or _from_names(downs) or _from_projections(plain)


def family_in_metadata(metadata: Mapping[str, str]) -> Family | None:
    """What the header of kohya's or of another trainer says of the base."""
    version = metadata.get("ss_base_model_version", "").lower()
    architecture = metadata.get("modelspec.architecture", "").lower()
    if version.startswith("sdxl") or architecture.startswith("stable-diffusion-xl"):
        return Family.SDXL
    if version.startswith(("sd_v2", "sd_2", "sd2")) or architecture.startswith(
        "stable-diffusion-v2"
    ):
        return Family.SD2
    if metadata.get("ss_v2") == "True":
        return Family.SD2
    if version.startswith(("sd_v1", "sd_1", "sd1")) or architecture.startswith(
        "stable-diffusion-v1"
    ):
        return Family.SD1
    return None


def _of_roles(shapes: Shapes, roles: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of some roles, by module path."""
    named = ((split(key), shape) for key, shape in shapes.items())
    return {name[0]: shape for name, shape in named if name and name[1] in roles}


def _from_names(paths: Iterable[str]) -> Family | None:
    """Layers that only one family has, in small models too."""
    for path in paths:
        if path.startswith("unet.add_embedding.") or _DEEP_TRANSFORMER.search(path):
            return Family.SDXL
        match = _TEXT_LAYER.match(path)
        if match and int(match[1]) >= _SD1_TEXT_LAYERS:
            return Family.SD2
    return None


def _from_projections(shapes: Mapping[str, tuple[int, ...]]) -> Family | None:
    """SD 1 projects into its transformers with convolutions, the later families with matrices.

    Only for kinds that keep a layer's own dimensions.
    """
    projections = [s for path, s in shapes.items() if path.endswith((".proj_in", ".proj_out"))]
    if any(len(shape) == 4 for shape in projections):
        return Family.SD1
    if projections and any(path.startswith("unet.up_blocks.3.") for path in shapes):
        return Family.SD2  # SDXL has three blocks
    return None
