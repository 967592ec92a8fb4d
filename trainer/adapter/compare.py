"""Whether two adapters get in each other's way: a conflict report, by block and in all.

Two measures. The cosine of their ΔW says whether they pull the same way (1), apart (-1) or neither
(0). The overlap of the spaces they read from and write to, by principal angles (Björck & Golub,
1973), says whether they act on the same features at all; random spaces overlap by `chance`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from trainer.adapter import algebra
from trainer.adapter.algebra import Cut, Spectrum
from trainer.adapter.blocks import block_of, in_order
from trainer.adapter.compose import combine, compress
from trainer.adapter.factors import Adapter, LowRank
from trainer.errors import AdapterError

# The directions that hold this share of ΔW's energy span the space that an adapter acts on; the
# rest of a trained rank is noise, which overlaps with anything.
_ENERGY = 0.95


@dataclass(frozen=True)
class Overlap:
    """How two adapters meet in one layer, one block, or in all.

    Attributes:
        cosine: of ΔW, -1 to 1.
        inputs, outputs: overlap of the spaces read and written: the mean squared cosine of their
            principal angles, 0 to 1.
        chance: the overlap of random spaces of the same sizes.
        gains: how strong each acts in the mix, as a share of its strength alone.
        shares: the part of each adapter's energy ‖ΔW‖² that is here.
    """

    cosine: float
    inputs: float
    outputs: float
    chance: float
    gains: tuple[float, float]
    shares: tuple[float, float]


@dataclass(frozen=True)
class Conflict:
    """The report on two adapters, at the weights at which they were given.

    Attributes:
        blocks: overlaps by block, in the order in which an image passes through them; only blocks
            in which both act.
        strongest: for each adapter, its strongest layers with their share of its energy.
        alone: for each adapter, how many layers it alone has.
        rank, loss: relative error of the mix when compressed to the larger of the two ranks.
    """

    names: tuple[str, str]
    total: Overlap
    blocks: Mapping[str, Overlap]
    strongest: tuple[Mapping[str, float], Mapping[str, float]]
    alone: tuple[int, int]
    rank: int
    loss: float

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)

    def to_words(self) -> str:
        """The report for a person."""
        one, two = self.names
        total = self.total
        lines = [
            f"{one} and {two} {_relation(total)}",
            f"In their mix {one} acts at {total.gains[0]:.0%} of its strength alone, "
            f"{two} at {total.gains[1]:.0%}.",
            f"They share {total.inputs:.0%} of what they read and {total.outputs:.0%} of what they "
            f"write; {total.chance:.0%} would be chance.",
        ]
        tense = sorted(self.blocks, key=lambda block: self.blocks[block].cosine)[:1]
        if tense and self.blocks[tense[0]].cosine < -0.05:
            lines.append(
                f"They pull apart most in {tense[0]} ({self.blocks[tense[0]].cosine:+.2f})."
            )
        for name, layers, alone in zip(self.names, self.strongest, self.alone, strict=True):
            path, share = next(iter(layers.items()))
            others = f", and has {alone} layers for itself" if alone else ""
            lines.append(f"{name} is strongest in {path}, with {share:.0%} of its energy{others}.")
        lines.append(f"The mix compressed to rank {self.rank} loses {self.loss:.1%}.")
        return "\n".join(lines)

    def to_table(self) -> str:
        """The overlaps by block for a person, a line each."""
        one, two = self.names
        width = max(map(len, self.blocks))
        lines = [
            f"By block, the cosine of both changes, how much of what they read and write is "
            f"shared (by chance), and the share of {one} and of {two} that is there:"
        ]
        for block, it in self.blocks.items():
            lines.append(
                f"  {block:{width}}  {it.cosine:+.2f}  reads {it.inputs:4.0%}  "
                f"writes {it.outputs:4.0%}  ({it.chance:.0%})  "
                f"{it.shares[0]:4.0%} and {it.shares[1]:4.0%}"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class _Meeting:
    """What one layer adds to its block's sums: energies, inner product and overlaps."""

    energies: tuple[float, float]
    product: float
    inputs: float
    outputs: float
    chance: float


def compare(names: tuple[str, str], one: Adapter, two: Adapter, *, layers: int = 5) -> Conflict:
    """The conflict report on two adapters, weighed as they are (see `compose.combine`).

    Args:
        layers: how many of each one's strongest layers to name.

    Raises:
        AdapterError: if they have no layer in common, or differ in shape.
    """
    common = [path for path in one if path in two]
    if not common:
        raise AdapterError(
            f"{names[0]} and {names[1]} have no layer in common, so there is nothing to compare.",
            "They may be made for different families of Stable Diffusion.",
        )
    mix = combine([(one, 1.0), (two, 1.0)])
    rank = max(layer.rank for adapter in (one, two) for layer in adapter.values())
    meetings = {path: _meet(one[path], two[path]) for path in common}
    energies = (
        _energies(one, {path: meeting.energies[0] for path, meeting in meetings.items()}),
        _energies(two, {path: meeting.energies[1] for path, meeting in meetings.items()}),
    )
    wholes = (sum(energies[0].values()), sum(energies[1].values()))
    blocks: dict[str, list[_Meeting]] = {}
    for path in common:
        blocks.setdefault(block_of(path), []).append(meetings[path])
    return Conflict(
        names,
        _summed(list(meetings.values()), wholes, wholes),
        {
            block: _summed(blocks[block], _block_energies(block, energies), wholes)
            for block in sorted(blocks, key=in_order)
        },
        (_strongest(energies[0], layers), _strongest(energies[1], layers)),
        (len(one) - len(common), len(two) - len(common)),
        rank,
        compress(mix, Cut(rank=rank))[1].total,
    )


def overlap(one: Tensor, two: Tensor) -> float:
    """Mean squared cosine of the principal angles between two spaces.

    Args:
        one, two: orthonormal bases as columns, [n, k₁] and [n, k₂]; the mean is over min(k₁, k₂).
    """
    return float((one.T @ two).square().sum()) / min(one.shape[1], two.shape[1])


def _meet(one: LowRank, two: LowRank) -> _Meeting:
    first, second = algebra.product_spectrum(one), algebra.product_spectrum(two)
    (left1, right1), (left2, right2) = _spaces(first), _spaces(second)
    larger = max(left1.shape[1], left2.shape[1])
    chance = (larger / left1.shape[0] + larger / right1.shape[0]) / 2
    return _Meeting(
        (first.energy, second.energy),
        algebra.inner(one, two),
        overlap(right1, right2),
        overlap(left1, left2),
        min(chance, 1.0),
    )


def _spaces(spectrum: Spectrum) -> tuple[Tensor, Tensor]:
    """Orthonormal bases of the spaces written to [out, k] and read from [in·kh·kw, k]."""
    count = Cut(energy=_ENERGY).count(spectrum.values)
    return spectrum.left[:, :count], spectrum.right[:count].T


def _summed(
    meetings: Sequence[_Meeting], energies: tuple[float, float], wholes: tuple[float, float]
) -> Overlap:
    """Layers as one: sums of inner products, and overlaps weighed by both adapters' norms."""
    product = sum(meeting.product for meeting in meetings)
    scale = math.sqrt(energies[0] * energies[1])
    weights = [math.sqrt(m.energies[0] * m.energies[1]) for m in meetings]
    whole = sum(weights)

    def mean(values: Sequence[float]) -> float:
        if whole == 0:
            return 0.0
        return sum(w * value for w, value in zip(weights, values, strict=True)) / whole

    return Overlap(
        cosine=product / scale if scale else 0.0,
        inputs=mean([m.inputs for m in meetings]),
        outputs=mean([m.outputs for m in meetings]),
        chance=mean([m.chance for m in meetings]),
        gains=(_gain(product, energies[0]), _gain(product, energies[1])),
        shares=(_share(energies[0], wholes[0]), _share(energies[1], wholes[1])),
    )


def _gain(product: float, energy: float) -> float:
    """⟨Δ₁ + Δ₂, Δ₁⟩ / ⟨Δ₁, Δ₁⟩."""
    return 1 + product / energy if energy else 1.0


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _energies(adapter: Adapter, known: Mapping[str, float]) -> dict[str, float]:
    """‖ΔW‖² by layer; where it is known already, it is not computed again."""
    return {
        path: known[path] if path in known else algebra.norm(layer) ** 2
        for path, layer in adapter.items()
    }


def _block_energies(
    block: str, energies: tuple[Mapping[str, float], Mapping[str, float]]
) -> tuple[float, float]:
    one, two = (
        sum(energy for path, energy in of.items() if block_of(path) == block) for of in energies
    )
    return one, two


def _strongest(energies: Mapping[str, float], count: int) -> dict[str, float]:
    whole = sum(energies.values())
    paths = sorted(energies, key=lambda path: -energies[path])[:count]
    return {path: _share(energies[path], whole) for path in paths}


def _relation(total: Overlap) -> str:
    if total.cosine > 0.3:
        return f"do much the same (cosine {total.cosine:+.2f}): lower their weights when mixing."
    if total.cosine < -0.1:
        return f"pull against each other (cosine {total.cosine:+.2f}): the mix weakens both."
    if max(total.inputs, total.outputs) > 2 * total.chance + 0.1:
        return (
            f"do different things to the same features (cosine {total.cosine:+.2f}): "
            "they may disturb each other."
        )
    return f"leave each other alone (cosine {total.cosine:+.2f}): they mix well."
