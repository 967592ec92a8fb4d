"""Muon: steps that are orthogonal matrices, the same as PyTorch's own where that can take them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer.model.embedded.build_optimizer import Muon, optimizers_for, orthogonal


@pytest.mark.parametrize("shape", [(6, 6), (5, 20), (20, 5)])
def test_singular_values_end_near_one_and_singular_vectors_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    out = orthogonal(matrix)
    assert out.shape == matrix.shape
    values = torch.linalg.svdvals(out)
    assert values.min() > 0.6
    assert values.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inner = left.T @ out @ right.T
    assert torch.allclose(inner, torch.diag(inner.diagonal()), atol=1e-4)


def test_steps_equal_those_of_pytorch() -> None:
    ours, theirs = (nn.Parameter(torch.full((4, 6), 0.5)) for _ in range(2))
    mine = Muon([ours], 1e-2, weight_decay=0.1)
    reference = torch.optim.Muon([theirs], 1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    noise = torch.Generator().manual_seed(2)
    for _ in range(4):
        gradient = torch.randn(4, 6, generator=noise)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        reference.step()
    # PyTorch works in bfloat16
    assert torch.allclose(ours, theirs, atol=2e-4)
    assert not torch.allclose(ours, torch.full((4, 6), 0.5), atol=1e-2)


def test_every_trained_parameter_has_exactly_one_optimizer() -> None:
    module = nn.ModuleDict(
        {"conv_in": nn.Conv2d(3, 4, 3), "middle": nn.Conv2d(4, 4, 3), "frozen": nn.Linear(2, 2)}
    )
    module["frozen"].requires_grad_(False)
    muon, adam = (
        {id(p) for group in optimizer.param_groups for p in group["params"]}
        for optimizer in optimizers_for(module, 1e-3, 0.0)
    )
    assert muon == {id(module["middle"].weight)}
    trained = {id(p) for p in module.parameters() if p.requires_grad}
    assert muon | adam == trained
    assert not muon & adam
