"""The gates of all layers at once: strength · alpha / rank for each row of each adapter.

One tensor holds those of every layer, so that setting strengths is a handful of operations however
many layers there are; a layer's gate is a view of its part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

# A strength is a number, one number per image [B], or a function from module path to either.
Strength = float | Tensor | Callable[[str], float | Tensor]


class Gates:
    """Made of the scale alpha / rank of every row, by module path and adapter name."""

    def __init__(self, scales: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
        self._places = [(path, tuple(adapters)) for path, adapters in scales.items()]
        by_place = [rows for adapters in scales.values() for rows in adapters.values()]
        self._scales = torch.tensor([scale for rows in by_place for scale in rows])
        ranks = torch.tensor([len(rows) for rows in by_place])
        self._place_of_row = torch.repeat_interleave(torch.arange(len(by_place)), ranks)
        self._lengths = [
            sum(len(rows) for rows in adapters.values()) for adapters in scales.values()
        ]

    def at(
        self, strengths: Mapping[str, Strength]
    ) -> tuple[dict[str, tuple[float | Tensor, ...]], Callable[[torch.device], dict[str, Tensor]]]:
        """For each path the strengths of its adapters there, and the gates on a device: [R], or
        [B, R] if any strength is per image. Adapters that are not named have strength 0."""
        found = {
            path: tuple(_at(strengths.get(name, 0.0), path) for name in names)
            for path, names in self._places
        }
        distinct: dict[tuple[bool, float], tuple[int, float | Tensor]] = {}
        columns = [
            # Layers share few values; tensors are told apart by what they are, not what they hold.
            distinct.setdefault(
                (True, id(value)) if isinstance(value, Tensor) else (False, float(value)),
                (len(distinct), value),
            )[0]
            for values in found.values()
            for value in values
        ]
        table = _table([value for _, value in distinct.values()])
        flat = self._scales * table[..., torch.tensor(columns)[self._place_of_row]]

        def on(device: torch.device) -> dict[str, Tensor]:
            return dict(
                zip(found, torch.split(flat.to(device), self._lengths, dim=-1), strict=True)
            )

        return found, on


def _table(values: Sequence[float | Tensor]) -> Tensor:
    """Strengths [N], or [B, N] if any is per image."""
    images = max((len(value) for value in values if isinstance(value, Tensor)), default=None)
    if images is None:
        return torch.tensor(values, dtype=torch.float32)
    columns = [
        value.to("cpu", torch.float32).expand(images)
        if isinstance(value, Tensor)
        else torch.full((images,), float(value))
        for value in values
    ]
    return torch.stack(columns, dim=1)


def _at(strength: Strength, path: str) -> float | Tensor:
    return strength(path) if callable(strength) else strength
