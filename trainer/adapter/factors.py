"""The adapter as data: low-rank factors by module path.

A module path names a layer of the base as diffusers does, with the part in front:
`unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q`,
`text_encoder.text_model.encoder.layers.0.self_attn.q_proj`. Text-encoder paths always have the
`text_model` level, whichever version of transformers is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """ΔW = (alpha / rank) · up @ down of one layer.

    Linear: down [rank, in], up [out, rank]. Convolution: down [rank, in, kh, kw],
    up [out, rank, 1, 1].
    """

    down: Tensor
    up: Tensor
    alpha: float

    @staticmethod
    def of(up: Tensor, down: Tensor, scale: float) -> LowRank:
        """scale · up @ down, for up [out, rank] and down [rank, in(, kh, kw)]."""
        up = up.reshape(*up.shape, *([1, 1] if down.dim() == 4 else []))
        return LowRank(down.contiguous(), up.contiguous(), scale * down.shape[0])

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of ΔW and of the layer's weight: (out, in) or (out, in, kh, kw)."""
        return (self.up.shape[0], *self.down.shape[1:])

    def delta(self) -> Tensor:
        """ΔW in fp32, shaped like the layer's weight."""
        product = self.scale * (self.up.float().flatten(1) @ self.down.float().flatten(1))
        return product.reshape(self.shape)


Adapter = Mapping[str, LowRank]
