"""What a kind of adapter is: the tensors it trains, and how files hold them.

No torch when this is imported: the web process counts parameters and bytes by it before a run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainer.adapter.kinds import Layer
    from trainer.adapter.layers import AdapterLayer

MAX_WEIGHT = 2**27  # entries; the largest layer of SDXL has 30 million

Shape = tuple[int, ...]
Parts = Mapping[str, "Tensor"]  # by role, as `keys.split` names them


@dataclass(frozen=True)
class Factor:
    """One trainable tensor of a layer, and how it begins.

    `zero`, uniform in ±`size`, normal with standard deviation `size`, or the norms of the base's
    input channels. A new adapter changes nothing, so one factor of each product begins at zero; it
    is the one that LoRA+ speeds up.
    """

    shape: Shape
    start: Literal["zero", "uniform", "normal", "norms"]
    size: float = 0.0

    @property
    def count(self) -> int:
        """Number of values."""
        return prod(self.shape)

    @property
    def fast(self) -> bool:
        """Whether LoRA+ (arXiv:2402.12354) has it learn faster."""
        return self.start == "zero"


class Kind(ABC):
    """A kind of adapter. All its methods speak of one layer.

    `name` is its name in the settings; `dimensions` says how many dimensions the tensors of each of
    its roles may have in files, `wide` which of them keep fp32 in a file of any precision.
    """

    name: ClassVar[str]
    dimensions: ClassVar[Mapping[str, tuple[int, ...]]]
    wide: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def factors(self, shape: Shape, rank: int, split: int | None = None) -> dict[str, Factor]:
        """The trainable tensors by role, for a weight of `shape` [out, in(, kh, kw)].

        `split` is LoKr's factor; the other kinds take no notice of it.
        """

    @abstractmethod
    def read(self, parts: Parts, kernel: int, alpha: float | None) -> Layer:
        """The layer that tensors by role describe; without an alpha its scale is 1.

        `kernel` is the side of the layer's convolution, which flattened factors leave out. Shapes
        are checked, not values; tensors may be those in training, and keep their gradients.

        Raises:
            ValueError: if tensors are missing or do not fit; the words follow the layer's name.
        """

    @abstractmethod
    def write(self, layer: Layer, alpha: float) -> dict[str, Tensor]:
        """The reverse of `read`: tensors by role which with `alpha` are the layer, in fp32."""

    @abstractmethod
    def natural(self, layer: Layer) -> tuple[int, float] | None:
        """Its factors' rank, and the alpha at which `write` scales none; None where alpha has no
        meaning."""

    def trainable(
        self, base: nn.Module, tensors: Mapping[str, Tensor], alpha: float
    ) -> AdapterLayer:
        """The layer that trains `tensors` beside the frozen `base`; ΔW is formed in each pass."""
        from trainer.adapter.layers import DeltaLayer

        return DeltaLayer(self, base, tensors, alpha)


def need(parts: Parts, *roles: str) -> tuple[Tensor, ...]:
    """The tensors of `roles`; a ValueError names those that are missing."""
    missing = [role for role in roles if role not in parts]
    if missing:
        raise ValueError(f"lacks {' and '.join(missing)}")
    return tuple(parts[role] for role in roles)


def check_size(*sides: int) -> None:
    """Small factors can stand for a product that no memory holds: a ValueError says so."""
    if prod(sides) > MAX_WEIGHT:
        raise ValueError(f"is for a weight of {'×'.join(map(str, sides))}, which no base has")


def product(up: Tensor, down: Tensor) -> Tensor:
    """up [out, r] @ down [r, in(, kh, kw)] -> [out, in(, kh, kw)]."""
    return (up @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


def unflatten(down: Tensor, kernel: int) -> Tensor:
    """[r, in·k·k] -> [r, in, k, k] for a convolution, else as it is."""
    if kernel == 1 or down.dim() != 2 or down.shape[1] % kernel**2:
        return down
    return down.reshape(down.shape[0], -1, kernel, kernel)


def from_tucker(core: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """LyCORIS' Tucker form, core [r, r, kh, kw], up [r, out], down [r, in], as two factors."""
    return up.T, core_times(core, down)


def core_times(core: Tensor, down: Tensor) -> Tensor:
    """[r, s, kh, kw] · [s, in] -> [r, in, kh, kw]."""
    check_size(core.shape[0], down.shape[-1], *core.shape[2:])
    return (core.permute(0, 2, 3, 1) @ down).permute(0, 3, 1, 2)


def words(tensor: Tensor) -> str:
    """A tensor's shape for a message: `16×320`."""
    return "×".join(str(size) for size in tensor.shape) or "one number"
