"""TIES, DARE and magnitude pruning against PEFT's implementations under the same masks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils import merge_utils

from tests.trainer.adapter import families
from tests.trainer.adapter.families import relative
from trainer.adapter import merge as merging
from trainer.adapter.algebra import Cut
from trainer.adapter.compose import combine
from trainer.adapter.merge import elect_and_average, largest, merge

METHODS: tuple[merging.Method, ...] = ("ties", "dare", "dare-ties", "magnitude")
ALL = Cut()


def pair() -> list[dict[str, families.LowRank]]:
    return [families.random_adapter(families.SMALL, seed=seed) for seed in (0, 1)]


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, 0.2)])
@pytest.mark.filterwarnings("ignore:The density")
def test_ties_and_pruning_are_peft_s(density: float, weights: tuple[float, float]) -> None:
    made = pair()
    for method, oracle in (("ties", merge_utils.ties), ("magnitude", merge_utils.magnitude_prune)):
        merged, error = merge(
            list(zip(made, weights, strict=True)), method, cut=ALL, density=density
        )  # type: ignore[arg-type]
        assert error.total < 1e-6
        for path in families.SMALL:
            wanted = oracle([one[path].delta() for one in made], torch.tensor(weights), density)
            assert relative(merged[path].delta(), wanted) < 1e-5


@pytest.mark.parametrize("method", ["dare", "dare-ties"])
def test_dare_is_peft_s_under_the_same_masks(
    method: merging.Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, weights, density = pair(), (0.7, 0.4), 0.6
    merged, _ = merge(
        list(zip(made, weights, strict=True)), method, cut=ALL, density=density, seed=5
    )
    oracle = merge_utils.dare_linear if method == "dare" else merge_utils.dare_ties
    for path, shape in families.SMALL.items():
        masks = iter(
            [
                merging.chosen(shape, density, merging.mask_generator(5, path, i)).float()
                for i in (0, 1)
            ]
        )
        monkeypatch.setattr(torch, "bernoulli", lambda _, masks=masks: next(masks))
        wanted = oracle([one[path].delta() for one in made], torch.tensor(weights), density)
        assert relative(merged[path].delta(), wanted) < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_adapter(method: merging.Method) -> None:
    made = [(one, 1.0) for one in pair()]
    one, two, three = (merge(made, method, cut=Cut(rank=3), seed=seed)[0] for seed in (1, 1, 2))
    assert all(torch.equal(one[path].up, two[path].up) for path in one)
    differs = any(relative(one[path].delta(), three[path].delta()) > 0.01 for path in one)
    assert differs == method.startswith("dare")


def test_dare_is_right_on_average() -> None:
    made = pair()
    whole = combine([(one, 1.0) for one in made])
    path = next(iter(families.SMALL))
    mean = torch.stack(
        [merge([(one, 1.0) for one in made], "dare", cut=ALL, seed=seed)[0][path].delta()
         for seed in range(200)]
    ).mean(0)  # fmt: skip
    assert relative(mean, whole[path].delta()) < 0.15


def test_a_negative_weight_turns_its_adapter_round() -> None:
    one, _ = pair()
    merged, _ = merge([(one, 1.0), (one, -1.0)], "magnitude", cut=ALL, density=1.0)
    assert all(layer.delta().abs().max() < 1e-6 for layer in merged.values())
    turned, _ = merge([(one, -1.0)], "ties", cut=ALL, density=1.0)
    for path, layer in turned.items():
        assert relative(layer.delta(), -one[path].delta()) < 1e-5


def test_ties_of_an_adapter_with_itself_is_the_adapter() -> None:
    one, _ = pair()
    merged, _ = merge([(one, 1.0), (one, 1.0)], "ties", cut=ALL, density=1.0)
    for path, layer in merged.items():
        assert relative(layer.delta(), one[path].delta()) < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_the_error_is_that_of_the_cut(method: merging.Method) -> None:
    made = [(one, 1.0) for one in pair()]
    whole, _ = merge(made, method, cut=ALL, seed=3)
    cut, error = merge(made, method, cut=Cut(rank=2), seed=3)
    for path in whole:
        assert relative(cut[path].delta(), whole[path].delta()) == pytest.approx(
            error.layers[path], abs=1e-5
        )


@settings(max_examples=30)
@given(st.integers(1, 60), st.floats(0.01, 1))
def test_the_largest_entries_are_kept(size: int, density: float) -> None:
    delta = torch.randn(size, 3, generator=torch.Generator().manual_seed(size))
    mask = largest(delta, density)
    assert int(mask.sum()) == int(density * delta.numel())
    if mask.any() and not mask.all():
        assert delta[mask].abs().min() >= delta[~mask].abs().max()


def test_the_larger_total_wins_the_election() -> None:
    deltas = torch.tensor([[3.0, -1.0, 2.0, 0.0], [-1.0, -1.0, 2.0, 0.0], [-1.0, 5.0, -3.0, 0.0]])
    averaged = elect_and_average(deltas, torch.ones(3))
    assert averaged.tolist() == [3.0, 5.0, 2.0, 0.0]


def test_densities_out_of_bounds_are_refused() -> None:
    for density in (0.0, 1.5):
        with pytest.raises(ValueError, match="density"):
            merge([(pair()[0], 1.0)], "ties", cut=ALL, density=density)
