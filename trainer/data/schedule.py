"""Which images make up batch number n: a pure function of the plan and n, so a run can go on
anywhere without saved state.

Batches are full and hold images of one size. Time is cut into *rounds* of as many batches as the
images' repeats add up to. In a round, a bucket gets one batch per repeat of its images, and goes
batch_size times through them; so after every round each image has been seen batch_size * repeats
times, whatever the size of its bucket. Within a round, the turns of buckets and of images are
spread evenly and jittered (`_spread`), so that at any moment the shares are close to due.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.data.buckets import Size

_BUCKETS, _IMAGES = 0, 1  # keep the random streams of the two kinds of turns apart


@dataclass(frozen=True)
class Schedule:
    """The order of batches.

    `buckets` holds, per size, the indices of its images; `repeats` one count per image.
    """

    buckets: tuple[tuple[int, ...], ...]
    repeats: tuple[int, ...] = field(repr=False)
    batch_size: int
    seed: int

    @classmethod
    def plan(
        cls, sizes: Sequence[Size], repeats: Sequence[int], batch_size: int, seed: int
    ) -> Schedule:
        """A schedule for images 0 … n - 1, given the bucket size and the repeats of each."""
        if not sizes or len(sizes) != len(repeats) or min(repeats) < 1 or batch_size < 1:
            raise ValueError("a schedule needs images, repeats of at least 1, and a batch size")
        members: dict[Size, list[int]] = {}
        for index, size in enumerate(sizes):
            members.setdefault(size, []).append(index)
        common = math.gcd(*repeats)
        return cls(
            buckets=tuple(tuple(members[size]) for size in sorted(members)),
            repeats=tuple(count // common for count in repeats),
            batch_size=batch_size,
            seed=seed,
        )

    @property
    def round_length(self) -> int:
        """Batches after which every image has been seen batch_size * repeats times."""
        return sum(self.repeats)

    def batch(self, number: int) -> tuple[int, ...]:
        """Indices of the images of batch `number` (from 0), all of one size.

        With gradient accumulation, pass j of step k is batch k * gradient_accumulation + j.
        """
        round_number, position = divmod(number, self.round_length)
        turns = _spread(self._bucket_weights, (self.seed, _BUCKETS, round_number))
        bucket, nth = int(turns.which[position]), int(turns.nth[position])
        weights = self._image_weights[bucket]
        pass_length = self._bucket_weights[bucket]
        first = (round_number * pass_length + nth) * self.batch_size
        batch = []
        for place in range(first, first + self.batch_size):
            pass_number, position = divmod(place, pass_length)
            order = _spread(weights, (self.seed, _IMAGES, bucket, pass_number)).which
            batch.append(self.buckets[bucket][order[position]])
        return tuple(batch)

    @cached_property
    def _image_weights(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(self.repeats[i] for i in bucket) for bucket in self.buckets)

    @cached_property
    def _bucket_weights(self) -> tuple[int, ...]:
        return tuple(sum(weights) for weights in self._image_weights)


class _Turns(NamedTuple):
    """Whose turn it is at each position, and which of its own turns that is, from 0."""

    which: NDArray[np.int32]  # [sum of weights]
    nth: NDArray[np.int32]  # [sum of weights]


@lru_cache(maxsize=64)  # a pass for each of the buckets that are in use, and the round
def _spread(weights: tuple[int, ...], key: tuple[int, ...]) -> _Turns:
    """`weights[i]` turns for each i, evenly spread but in an order that `key` decides.

    The n-th of w turns falls at a random moment in [n / w, (n + 1) / w). With all weights 1 that
    is a plain shuffle. Only the raw bits of a generator are used, since numpy promises to keep
    those the same in all its versions, and an order must not change under a run to be resumed.
    """
    counts = np.asarray(weights)
    which = np.repeat(np.arange(len(counts)), counts)
    nth = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    bits = np.random.PCG64(np.random.SeedSequence(key)).random_raw(len(which))
    jitter = (bits >> np.uint64(11)) * 2.0**-53  # [0, 1)
    order = np.argsort((nth + jitter) / counts[which], kind="stable")
    return _Turns(which[order].astype(np.int32), nth[order].astype(np.int32))
