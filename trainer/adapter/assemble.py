"""One layer put together from the tensors that a file holds for it, whatever their kind.

The layouts are those of kohya's and LyCORIS' writers and of PEFT. Shapes are checked here, so that
what comes out can be used without a second look; ValueError says what does not fit, in words that
follow the layer's name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.adapter.factors import LowRank
from trainer.adapter.lycoris import Additive, DoRA, Full, Layer, LoHa, LoKr

Parts = Mapping[str, Tensor]  # by role, as `keys.split` names them

# How many dimensions a tensor of each role may have.
_DIMENSIONS = {
    "down": (2, 4), "up": (2, 4), "mid": (4,), "diff": (2, 4),
    "hada_w1_a": (2,), "hada_w1_b": (2,), "hada_w2_a": (2,), "hada_w2_b": (2,),
    "hada_t1": (4,), "hada_t2": (4,),
    "lokr_w1": (2,), "lokr_w1_a": (2,), "lokr_w1_b": (2,),
    "lokr_w2": (2, 4), "lokr_w2_a": (2,), "lokr_w2_b": (2,), "lokr_t2": (4,),
    "dora_scale": (1, 2, 4), "magnitude": (1, 2, 4),
}  # fmt: skip
MAX_WEIGHT = 2**27  # entries; the largest layer of SDXL has 30 million


def assemble(parts: Parts, *, kernel: int, alpha: float | None = None) -> Layer:
    """The layer that `parts` describe, with tensors in fp32.

    `kernel` is the side of the layer's convolution, which LyCORIS' flattened factors leave out.
    `alpha` is used where the file has none for the layer; without either the scale is 1.

    Raises:
        ValueError: if tensors are missing, are of two kinds, or do not fit one another.
    """
    rest = dict(parts)
    magnitude: Parts = {
        role: rest.pop(role) for role in ("dora_scale", "magnitude") if role in rest
    }
    stated = rest.pop("alpha", None)
    if stated is not None:
        if stated.numel() != 1:
            raise ValueError("has an alpha that is not one number")
        alpha = float(stated)
    for role, tensor in {**rest, **magnitude}.items():
        if tensor.dim() not in _DIMENSIONS[role] or 0 in tensor.shape:
            raise ValueError(f"has a {role} of {_shape(tensor)}, which makes no sense")
    try:
        direction = _direction(rest, kernel, alpha)
        _check_size(*direction.shape)
        return _with_magnitude(direction, magnitude)
    except RuntimeError:
        shapes = ", ".join(f"{role} {_shape(tensor)}" for role, tensor in sorted(parts.items()))
        raise ValueError(f"has tensors that do not fit together: {shapes}") from None


def _direction(parts: dict[str, Tensor], kernel: int, alpha: float | None) -> Additive:
    kinds = {role.split("_")[0] if role not in ("down", "up", "mid") else "lora" for role in parts}
    if len(kinds) > 1:
        raise ValueError(f"mixes two kinds of adapter, {' and '.join(sorted(kinds))}")
    match sorted(kinds):
        case ["lora"]:
            return _lora(parts, alpha)
        case ["hada"]:
            return _loha(parts, kernel, alpha)
        case ["lokr"]:
            return _lokr(parts, kernel, alpha)
        case ["diff"]:
            return Full(parts["diff"])
    raise ValueError("is of no kind that is known")


def _lora(parts: Parts, alpha: float | None) -> LowRank:
    down, up = _need(parts, "down", "up")
    if "mid" in parts:
        # Tucker form (LoCon): a 1×1 down, a k×k core, a 1×1 up. Core and down make one k×k down.
        down = _core_times(parts["mid"], down.flatten(1))
    if up.shape[1] != down.shape[0] or up.shape[2:].numel() != 1:
        raise ValueError(f"has factors that do not fit: {_shape(down)} and {_shape(up)}")
    up = up.reshape(*up.shape[:2], *([1, 1] if down.dim() == 4 else []))
    return LowRank(down, up, float(down.shape[0]) if alpha is None else alpha)


def _loha(parts: Parts, kernel: int, alpha: float | None) -> LoHa:
    up1, down1, up2, down2 = _need(parts, "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    rank = down1.shape[0]
    if "hada_t1" in parts or "hada_t2" in parts:
        core1, core2 = _need(parts, "hada_t1", "hada_t2")
        up1, down1 = _from_tucker(core1, up1, down1)
        up2, down2 = _from_tucker(core2, up2, down2)
    else:
        down1, down2 = _unflatten(down1, kernel), _unflatten(down2, kernel)
    layer = LoHa(up1, down1, up2, down2, 1.0 if alpha is None else alpha / rank)
    if up1.shape[0] != up2.shape[0] or down1.shape[1:] != down2.shape[1:]:
        raise ValueError("has two products of different shapes")
    if up1.shape[1] != down1.shape[0] or up2.shape[1] != down2.shape[0]:
        raise ValueError("has factors of different ranks")
    return layer


def _lokr(parts: Parts, kernel: int, alpha: float | None) -> LoKr:
    left, left_rank = _left(parts)
    up, down, right_rank = _right(parts, kernel)
    if up.shape[1] != down.shape[0]:
        raise ValueError("has factors of different ranks")
    rank = right_rank or left_rank
    # With both matrices whole there is no rank, and LyCORIS ignores alpha.
    return LoKr(left, up, down, alpha / rank if alpha is not None and rank else 1.0)


def _left(parts: Parts) -> tuple[Tensor, int | None]:
    if "lokr_w1" in parts:
        return parts["lokr_w1"], None
    first, second = _need(parts, "lokr_w1_a", "lokr_w1_b")
    _check_size(first.shape[0], second.shape[-1])
    return first @ second, second.shape[0]


def _right(parts: Parts, kernel: int) -> tuple[Tensor, Tensor, int | None]:
    if "lokr_w2" in parts:
        whole = parts["lokr_w2"]
        return torch.eye(whole.shape[0]), whole, None
    up, down = _need(parts, "lokr_w2_a", "lokr_w2_b")
    rank = down.shape[0]
    if "lokr_t2" in parts:
        up, down = _from_tucker(parts["lokr_t2"], up, down)
    else:
        down = _unflatten(down, kernel)
    return up, down, rank


def _from_tucker(core: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """LyCORIS' Tucker form, core [r, r, kh, kw], up [r, out], down [r, in], as two factors."""
    return up.T, _core_times(core, down)


def _core_times(core: Tensor, down: Tensor) -> Tensor:
    """[r, s, kh, kw] · [s, in] -> [r, in, kh, kw]."""
    _check_size(core.shape[0], down.shape[-1], *core.shape[2:])
    return torch.einsum("rskl,si->rikl", core, down)


def _unflatten(down: Tensor, kernel: int) -> Tensor:
    """[r, in·k·k] -> [r, in, k, k] for a convolution, else as it is."""
    if kernel == 1 or down.dim() != 2 or down.shape[1] % kernel**2:
        return down
    return down.reshape(down.shape[0], -1, kernel, kernel)


def _with_magnitude(direction: Additive, magnitudes: Parts) -> Layer:
    if not magnitudes:
        return direction
    shape = direction.shape
    ones = [1] * (len(shape) - 2)
    if "magnitude" in magnitudes:  # PEFT: always the output's, in several shapes
        magnitude = magnitudes["magnitude"].reshape(-1, 1, *ones)
    else:
        magnitude = magnitudes["dora_scale"]
        across = magnitude.shape[0] == 1 and magnitude.dim() > 1
        magnitude = magnitude.reshape(1, -1, *ones) if across else magnitude.reshape(-1, 1, *ones)
    wanted = shape[1] if magnitude.shape[0] == 1 and magnitude.shape[1] > 1 else shape[0]
    if magnitude.numel() != wanted:
        raise ValueError(f"has {magnitude.numel()} magnitudes for a weight of {tuple(shape)}")
    return DoRA(direction, magnitude)


def _check_size(*sides: int) -> None:
    # Small factors can stand for a product that no memory holds.
    if math.prod(sides) > MAX_WEIGHT:
        raise ValueError(f"is for a weight of {'×'.join(map(str, sides))}, which no base has")


def _need(parts: Parts, *roles: str) -> tuple[Tensor, ...]:
    missing = [role for role in roles if role not in parts]
    if missing:
        raise ValueError(f"lacks {' and '.join(missing)}")
    return tuple(parts[role] for role in roles)


def _shape(tensor: Tensor) -> str:
    return "×".join(str(size) for size in tensor.shape) or "one number"
