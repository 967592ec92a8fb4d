"""Whether an adapter fits a base, decided by layer names and shapes before the base is touched."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.adapter.factors import Adapter, LowRank
from trainer.adapter.recognise import recognise_family
from trainer.model.bases import Family

LayerShapes = Mapping[str, tuple[int, ...]]  # module path -> weight's [out, in(, kh, kw)]


def mismatch(
    adapter: Adapter, layer_shapes: LayerShapes, family: Family | None = None
) -> str | None:
    """What keeps an adapter from being used on a base, in one sentence; None if it fits.

    `family` is the adapter's where known; otherwise it is recognised from its layers.
    """
    wanted = family or _family_of_adapter(adapter)
    made_for = f"The adapter is made for {wanted.full_name if wanted else 'another base'}"
    missing = [path for path in adapter if path not in layer_shapes]
    if missing:
        return (
            f"{made_for}: {len(missing)} of its {len(adapter)} layers are not in this base, "
            f"such as {missing[0]}."
        )
    for path, layer in adapter.items():
        if not _fits(layer, layer_shapes[path]):
            return (
                f"{made_for}: its layer {path} changes a weight of {_size(layer.shape)}, "
                f"and this base has one of {_size(layer_shapes[path])}."
            )
    return None


def fitted(adapter: Adapter, layer_shapes: LayerShapes) -> dict[str, LowRank]:
    """The adapter with factors in the dimensions of the base's layers.

    A 1×1 convolution is a linear layer, and files hold its factors as either. Call it for an
    adapter without `mismatch`.
    """
    return {path: _reshaped(layer, layer_shapes[path]) for path, layer in adapter.items()}


def _reshaped(layer: LowRank, weight_shape: tuple[int, ...]) -> LowRank:
    if layer.down.dim() == len(weight_shape):
        return layer
    ones = [1] * (len(weight_shape) - 2)
    down = layer.down.reshape(*layer.down.shape[:2], *ones)
    return LowRank(down, layer.up.reshape(*layer.up.shape[:2], *ones), layer.alpha)


def _fits(layer: LowRank, weight_shape: tuple[int, ...]) -> bool:
    kernel, other = layer.shape[2:] or (1, 1), weight_shape[2:] or (1, 1)
    return layer.shape[:2] == tuple(weight_shape[:2]) and kernel == tuple(other)


def _family_of_adapter(adapter: Adapter) -> Family | None:
    shapes = {f"{path}.lora_A.weight": tuple(layer.down.shape) for path, layer in adapter.items()}
    return recognise_family(shapes, {})


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(str(size) for size in shape)
