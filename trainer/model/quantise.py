"""Frozen weights packed into eight or four bits, by bitsandbytes; adapters train beside them.

The linear layers of the UNet's transformers are packed, which hold most of its weights: to nf4
with doubly quantised scales as in QLoRA (Dettmers et al., 2023, arXiv:2305.14314), or to int8 with
a scale for each row (Dettmers et al., 2022, arXiv:2208.07339). Gradients pass through them.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from trainer.errors import UserError
from trainer.settings import Quantization

_INT8_STEPS = 127


def quantise(unet: nn.Module, how: Quantization, dtype: torch.dtype) -> None:
    """Replaces the linear layers of the transformers by packed ones. They are packed when the model
    is moved to its device, which has to follow.

    Raises:
        UserError: if bitsandbytes is not installed.
    """
    try:
        import bitsandbytes as bnb
    except ImportError:
        raise UserError(
            f"base.quantization {how} needs the package bitsandbytes.",
            "Install it by `pip install bitsandbytes`, or leave base.quantization unset.",
        ) from None
    for path, module in list(unet.named_modules()):
        if type(module) is nn.Linear and ".attentions." in path:
            parent, _, name = path.rpartition(".")
            setattr(unet.get_submodule(parent), name, _packed(bnb, module, how, dtype))


def _packed(bnb: Any, layer: nn.Linear, how: Quantization, dtype: torch.dtype) -> nn.Module:
    sizes = (layer.in_features, layer.out_features, layer.bias is not None)
    with torch.device("meta"):
        if how == "nf4":
            packed = bnb.nn.Linear4bit(*sizes, compute_dtype=dtype, quant_type="nf4")
            # Some CPUs have a faster way, which rounds the scales for good at the first image drawn
            # and takes whole multiples of 32 only.
            packed.support_avx512bf16_for_cpu = False
        else:
            packed = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False)
    weight = layer.weight.data.contiguous()
    if how == "nf4":
        packed.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    else:
        packed.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    packed.bias = layer.bias
    return packed.requires_grad_(False).eval()  # type: ignore[no-any-return]


def is_packed(weight: object) -> bool:
    """Whether a weight is stored as integers, with scales beside it."""
    return isinstance(weight, Tensor) and not weight.is_floating_point()


def rounds_inputs(model: nn.Module) -> bool:
    """Whether products are formed in eight bits: then inputs are rounded too, to a part in 127."""
    return any(
        isinstance(layer, nn.Linear) and layer.weight.dtype == torch.int8
        for layer in model.modules()
    )


def dense_weight(layer: nn.Module) -> Tensor:
    """A layer's weight [out, in(, kh, kw)]; of a packed one, what it stands for."""
    weight: Any = layer.weight
    if not is_packed(weight):
        return weight  # type: ignore[no-any-return]
    if getattr(weight, "quant_state", None) is not None:
        from bitsandbytes.functional import dequantize_4bit

        dense: Tensor = dequantize_4bit(weight.data, weight.quant_state)
        return dense
    # The scales are the weight's own until its first use, and the layer's afterwards.
    scales = getattr(weight, "SCB", None)
    scales = cast(Any, layer).state.SCB if scales is None else scales
    return weight.data.float() * scales.float()[:, None] / _INT8_STEPS  # type: ignore[no-any-return]


def parameters_of(model: nn.Module) -> int:
    """The number of a model's weights, packed or not."""
    packed = {layer.weight: layer for layer in model.modules()
              if isinstance(layer, nn.Linear) and is_packed(layer.weight)}  # fmt: skip
    return sum(
        packed[p].in_features * packed[p].out_features if p in packed else p.numel()
        for p in model.parameters()
    )
