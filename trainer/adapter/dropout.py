"""Dropout of an adapter in training, drawn from (seed, step): nothing to save, nothing to restore.

Three kinds, as kohya and LyCORIS have them: of entries of the hidden activations, of rows of the
factors for each image (for kinds that form ΔW: of its rows, for all images), and of whole layers.
A mask is a function of the step, the pass and the layer, so that activations which are recomputed
in the backward pass are dropped again, and a batch done in parts drops what the whole would.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

_STREAMS = 4  # for each layer: entries, rows, the layer; one to spare


@dataclass
class Dropout:
    """The shares that are dropped, each from 0 to below 1. Nothing is outside of `drawn`.

    What is kept is scaled up by 1 / (1 - share), except for whole layers.
    """

    entries: float
    rows: float
    layers: float
    _key: int | None = None
    _images: slice = field(default_factory=lambda: slice(None))
    _count: int = 0

    @contextmanager
    def drawn(self, key: int, images: slice, count: int) -> Iterator[None]:
        """Drops within the block, forward and backward, for some `images` of a batch of `count`.

        The same `key` (0 ≤ key < 2^63) gives the same masks.
        """
        if self.entries or self.rows or self.layers:
            self._key, self._images, self._count = key, images, count
        try:
            yield
        finally:
            self._key = None

    def skips(self, layer: int) -> bool:
        """Whether the layer of this number is left out."""
        if self._key is None or not self.layers:
            return False
        draw = torch.rand((), generator=self._generator(layer, 0, torch.device("cpu")))
        return float(draw) < self.layers

    def gate(self, layer: int, x: Tensor, gate: Tensor) -> Tensor:
        """The gate [R] or [B, R] with rows dropped for each image of x [B, …]."""
        if self._key is None or not self.rows:
            return gate
        return gate * self._mask(layer, 1, x, (gate.shape[-1],), self.rows)

    def weight(self, layer: int, delta: Tensor) -> Tensor:
        """ΔW [out, …] with rows dropped, the same for all images."""
        if self._key is None or not self.rows:
            return delta
        drawn = torch.rand(delta.shape[0], generator=self._generator(layer, 1, delta.device),
                           device=delta.device)  # fmt: skip
        kept = (drawn >= self.rows).to(delta.dtype) / (1 - self.rows)
        return delta * kept.view(-1, *[1] * (delta.dim() - 1))

    def hidden(self, layer: int, hidden: Tensor) -> Tensor:
        """The activations [B, …] with entries dropped."""
        if self._key is None or not self.entries:
            return hidden
        return hidden * self._mask(layer, 2, hidden, tuple(hidden.shape[1:]), self.entries)

    def _mask(
        self, layer: int, stream: int, x: Tensor, shape: tuple[int, ...], share: float
    ) -> Tensor:
        """[B, *shape]; the rows of a batch done in parts are those of the whole."""
        parts = len(range(self._count)[self._images])
        # A long caption is several rows of the text encoder's batch.
        each, rest = divmod(x.shape[0], max(parts, 1))
        whole = (self._count * each, *shape) if rest == 0 else (x.shape[0], *shape)
        drawn = torch.rand(whole, generator=self._generator(layer, stream, x.device),
                           device=x.device)  # fmt: skip
        if rest == 0:
            drawn = drawn.view(self._count, each, *shape)[self._images].flatten(0, 1)
        return (drawn >= share).to(x.dtype) / (1 - share)

    def _generator(self, layer: int, stream: int, device: torch.device) -> torch.Generator:
        assert self._key is not None
        seed = (self._key + layer * _STREAMS + stream) % 2**63
        return torch.Generator(device).manual_seed(seed)
