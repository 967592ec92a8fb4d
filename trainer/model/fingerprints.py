"""What tells loaded weights from others, wherever they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import nn


def fingerprint(modules: Sequence[nn.Module], context: str) -> str:
    """SHA-256, in hex, of the weights of modules as they are in memory, number format included,
    and of whatever else matters, given as `context`."""
    digest = hashlib.sha256(context.encode())
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()
