"""The blocks of a model by module path: for weights and reports by block. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.adapter.keys import to_sgm
from trainer.model.bases import Family

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


@dataclass(frozen=True)
class BlockList:
    """A factor for every layer by its place in the original UNet, as other tools list them.

    `factors` are by place: IN00 to IN11, MID, OUT00 to OUT11, and BASE for the text encoders and
    what is in no block. Places that are not listed have no adapter.
    """

    factors: Mapping[str, float]
    family: Family

    def __call__(self, path: str) -> float:
        return self.factors.get(self._place(path), 0.0)

    def _place(self, path: str) -> str:
        part, _, module = path.partition(".")
        original = to_sgm(module, self.family) if part == "unet" else None
        kind, _, rest = (original or "").partition(".")
        if kind == "middle_block":
            return "MID"
        side = {"input_blocks": "IN", "output_blocks": "OUT"}.get(kind)
        return f"{side}{int(rest.partition('.')[0]):02}" if side else "BASE"


def block_list(factors: Sequence[float], family: Family) -> BlockList:
    """Factors in the order of one of the usual lists: 17 or 26 for SD 1 and 2, 12 or 20 for SDXL.

    Raises:
        ValueError: if there is no list of that length for the family.
    """
    places = _LISTS.get((family is Family.SDXL, len(factors)))
    if places is None:
        lengths = "12 or 20" if family is Family.SDXL else "17 or 26"
        raise ValueError(f"a list for {family.full_name} has {lengths} factors, not {len(factors)}")
    return BlockList(dict(zip(places, factors, strict=True)), family)


def _places(inputs: Sequence[int], outputs: Sequence[int]) -> tuple[str, ...]:
    return (
        "BASE", *(f"IN{n:02}" for n in inputs), "MID", *(f"OUT{n:02}" for n in outputs)
    )  # fmt: skip


# By whether it is SDXL, and length. The shorter lists are of the blocks with attention.
_LISTS = {
    (False, 17): _places((1, 2, 4, 5, 7, 8), range(3, 12)),
    (False, 26): _places(range(12), range(12)),
    (True, 12): _places((4, 5, 7, 8), range(6)),
    (True, 20): _places(range(9), range(9)),
}
