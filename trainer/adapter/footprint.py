"""What a run is about to train, and the size of the file to come. No torch here.

Told from settings and shapes alone, so it can be known before anything is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from trainer.adapter.keys import kohya_key, kohya_name
from trainer.adapter.metadata import Header
from trainer.adapter.plan import LayerPlan, plan
from trainer.model.bases import Family
from trainer.model.shapes import Outline
from trainer.settings import Adapter, Settings

_FORMATS = {"fp32": ("F32", 4), "fp16": ("F16", 2), "bf16": ("BF16", 2)}
_HASHES = {"sshs_model_hash": "0" * 64, "sshs_legacy_hash": "0" * 8}


@dataclass(frozen=True)
class Footprint:
    """`parameters` that are trained, of a base that has `base_parameters`; bytes of the file."""

    parameters: int
    base_parameters: int
    file_bytes: int

    @property
    def share(self) -> float:
        """Parameters trained for each of the base's."""
        return self.parameters / self.base_parameters


def footprint(wanted: Settings, base: Outline) -> Footprint:
    """What these settings train on this base. Raises UserError as `plan_on` does."""
    plans = plan_on(base, wanted.adapter)
    return Footprint(
        parameters=sum(planned.parameters for planned in plans.values()),
        base_parameters=base.parameters,
        file_bytes=file_bytes(plans, wanted, base.family),
    )


def plan_on(base: Outline, wanted: Adapter) -> dict[str, LayerPlan]:
    """The adapter that these settings put on this base.

    Raises:
        UserError: if targets, a pattern or a block matches no layer.
    """
    chosen = [part for part in base.parts if part == "unet" or wanted.text_encoder]
    shapes = {path: shape for part in chosen for path, shape in base.parts[part].shapes.items()}
    return plan(shapes, wanted)


def file_bytes(plans: Mapping[str, LayerPlan], wanted: Settings, family: Family) -> int:
    """The size of the file that a run writes: its tensors, their names, and what it says of
    itself."""
    tensors = list(_tensors(plans, wanted, family))
    tree: dict[str, object] = {}
    position = 0
    for name, dtype, shape, size in sorted(tensors, key=lambda t: (t[1] != "F32", t[0])):
        tree[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    tree["__metadata__"] = {**_header(plans, wanted, family), **_HASHES}
    header = len(json.dumps(tree, ensure_ascii=False, separators=(",", ":")).encode())
    return 8 + header + -header % 8 + position


def _tensors(
    plans: Mapping[str, LayerPlan], wanted: Settings, family: Family
) -> Iterator[tuple[str, str, tuple[int, ...], int]]:
    """Key, format, shape and bytes of each tensor."""
    dtype, width = _FORMATS[wanted.output.precision]
    for path, planned in plans.items():
        name = kohya_name(path, family) or path
        for role, factor in planned.factors.items():
            wide = role in planned.kind.wide
            yield (kohya_key(name, role), "F32" if wide else dtype, factor.shape,
                   factor.count * (4 if wide else width))  # fmt: skip
        yield kohya_key(name, "alpha"), dtype, (), width


def _header(plans: Mapping[str, LayerPlan], wanted: Settings, family: Family) -> dict[str, str]:
    first = next(iter(plans.values()))
    header = Header(
        name=wanted.output.name,
        family=family,
        rank=first.rank,
        alpha=round(first.alpha, 4),
        kind=first.kind.name,
        trigger_words=(wanted.dataset.trigger,) if wanted.dataset.trigger else (),
        base=wanted.base.model,
        base_hash="0" * 64,
        resolution=wanted.dataset.resolution,
        images=10,
        steps=wanted.training.steps,
        seed=wanted.training.seed,
        settings=wanted.to_json(),
    )
    return header.to_metadata(private=wanted.output.private)
