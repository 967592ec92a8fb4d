"""Captions as the text encoders see them; kept, while those are frozen.

What is kept of a caption is as long as its own chunks of 75 tokens; next to longer ones in a batch
it goes on with empty chunks, as `encode_prompts` does.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from trainer.data.store import Store
from trainer.model.prompts import chunk_length, chunks_needed
from trainer.model.stable_diffusion import BaseModel, Conditioning

# Changes when the way from a caption to its conditioning does.
_FORMAT = 1
_MOST_AT_HAND = 64  # up to 40 MiB for SDXL


@dataclass(frozen=True)
class Conditions:
    """Reads captions, of each up to `most_chunks` chunks.

    Without a `store`, captions are encoded anew each time: for text encoders that are trained.
    """

    model: BaseModel
    most_chunks: int
    store: Store | None = None
    _at_hand: OrderedDict[str, Conditioning] = field(default_factory=OrderedDict, repr=False)

    def chunks(self, captions: Sequence[str]) -> int:
        """In how many chunks a batch of captions is read."""
        return chunks_needed(self.model.tokenizers, captions, self.most_chunks)

    def read(self, captions: Sequence[str], chunks: int | None = None) -> Conditioning:
        """The conditioning of a batch as the text encoders and their adapters are at this moment,
        in `chunks` chunks, by default as many as it needs."""
        if chunks is None:
            chunks = self.chunks(captions)
        if self.store is None:
            return self.model.encode_prompts(captions, chunks)
        return self._joined(captions, chunks)

    def read_to_learn(self, captions: Sequence[str], chunks: int) -> Conditioning:
        """The conditioning of a batch of a step: differentiable with respect to adapters of the
        text encoders, and remembered once those learn no more."""
        if self._learning:
            self._at_hand.clear()
            return self.model.encode_prompts(captions, chunks)
        return self._joined(captions, chunks)

    def prepare(self, captions: Collection[str], progress: Callable[[int], None]) -> None:
        """Encodes the captions that the store does not have; calls `progress(done)`."""
        if self.store is None:
            return
        missing = [one for one in captions if not self.store.has(self._key(one))]
        for done, caption in enumerate(missing, start=len(captions) - len(missing)):
            progress(done)
            self.store.put(self._key(caption), self._encode(caption))
        progress(len(captions))

    @property
    def _learning(self) -> bool:
        encoders = self.model.text_encoders.values()
        return any(p.requires_grad for encoder in encoders for p in encoder.parameters())

    def _joined(self, captions: Sequence[str], chunks: int) -> Conditioning:
        return Conditioning.cat([self._continued(self._of(one), chunks) for one in captions])

    def _of(self, caption: str) -> Conditioning:
        """A caption's conditioning in its own chunks."""
        if caption in self._at_hand:
            self._at_hand.move_to_end(caption)
            return self._at_hand[caption]
        found = self.store.get(self._key(caption)) if self.store else None
        parts = found or self._encode(caption)
        device = self.model.device
        pooled = parts["pooled"].to(device) if "pooled" in parts else None
        read = Conditioning(parts["hidden"].to(device), pooled)
        self._at_hand[caption] = read
        if len(self._at_hand) > _MOST_AT_HAND:
            self._at_hand.popitem(last=False)
        return read

    def _continued(self, read: Conditioning, chunks: int) -> Conditioning:
        """The conditioning of one caption, with empty chunks up to `chunks`."""
        width = self._chunk_width
        lacking = chunks - read.hidden.shape[1] // width
        if lacking <= 0:
            return Conditioning(read.hidden[:, : chunks * width], read.pooled)
        empty = self._of("").hidden.repeat(1, lacking, 1)
        return Conditioning(torch.cat([read.hidden, empty], dim=1), read.pooled)

    @torch.no_grad()
    def _encode(self, caption: str) -> dict[str, Tensor]:
        read = self.model.encode_prompts([caption], self.chunks([caption]))
        parts = {"hidden": read.hidden.cpu()}
        if read.pooled is not None:
            parts["pooled"] = read.pooled.cpu()
        return parts

    @cached_property
    def _chunk_width(self) -> int:
        return chunk_length(self.model.tokenizers[0]) + 2

    def _key(self, caption: str) -> str:
        everything = [_FORMAT, caption, self.most_chunks, *self._computed_by]
        return hashlib.sha256(json.dumps(everything).encode()).hexdigest()

    @cached_property
    def _computed_by(self) -> tuple[str, ...]:
        return self.model.text_fingerprint, self.model.device.type, torch.__version__
