"""The blocks of a model by module path: for weights and reports by block. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_ORDER = ("text_encoder", "text_encoder_2", "unet.conv_in", "unet.time_embedding",
          "unet.add_embedding", "unet.down_blocks", "unet.mid_block", "unet.up_blocks",
          "unet.conv_out")  # fmt: skip


def block_of(path: str) -> str:
    """The block that a layer belongs to, itself a prefix of the path.

    `unet.down_blocks.0`, `unet.mid_block`, `unet.up_blocks.3`, `unet.conv_in`, …; a text encoder is
    one block.
    """
    parts = path.split(".")
    if parts[0] != "unet":
        return parts[0]
    return ".".join(parts[: 3 if parts[1] in ("down_blocks", "up_blocks") else 2])


def in_order(block: str) -> tuple[int, str]:
    """A sort key that puts blocks in the order in which an image passes through them."""
    stem = block.rstrip("0123456789").rstrip(".") if block.startswith("unet.") else block
    return (_ORDER.index(stem) if stem in _ORDER else len(_ORDER), block)


@dataclass(frozen=True)
class BlockWeights:
    """A factor for every layer, by the longest prefix of its path that is named; 1 where none is.

    `{"text_encoder": 0.5, "unet.up_blocks": 0.8, "unet.up_blocks.0": 0}`
    """

    factors: Mapping[str, float]

    def __call__(self, path: str) -> float:
        prefix = path
        while prefix:
            if prefix in self.factors:
                return self.factors[prefix]
            prefix = prefix.rpartition(".")[0]
        return 1.0
