"""One layer put together from the tensors that a file holds for it, whatever their kind.

The layouts are those of kohya's and LyCORIS' writers and of PEFT. Shapes are checked here, so that
what comes out can be used without a second look; ValueError says what does not fit, in words that
follow the layer's name.
"""

from __future__ import annotations

from trainer.adapter.kinds import DoRA, Layer, Parts, reader
from trainer.adapter.kinds.kind import check_size, words


def assemble(parts: Parts, *, kernel: int, alpha: float | None = None) -> Layer:
    """The layer that `parts` describe, with tensors in fp32.

    `kernel` is the side of the layer's convolution, which LyCORIS' flattened factors leave out.
    `alpha` is used where the file has none for the layer; without either the scale is 1.

    Raises:
        ValueError: if tensors are missing, are of two kinds, or do not fit one another.
    """
    rest = dict(parts)
    stated = rest.pop("alpha", None)
    if stated is not None:
        if stated.numel() != 1:
            raise ValueError("has an alpha that is not one number")
        alpha = float(stated)
    try:
        layer = reader(rest).read(rest, kernel, alpha)
        check_size(*(layer.direction if isinstance(layer, DoRA) else layer).shape)
        return layer
    except RuntimeError:
        shapes = ", ".join(f"{role} {words(tensor)}" for role, tensor in sorted(parts.items()))
        raise ValueError(f"has tensors that do not fit together: {shapes}") from None
