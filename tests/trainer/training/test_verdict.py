"""What measurements amount to, on histories made by hand and by hypothesis."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.events import Validated
from trainer.training import verdict


def _history(
    held_out: Sequence[float | None], training: Sequence[float] | None = None
) -> list[Validated]:
    """Validations at steps 0, 10, 20, …; the base's losses are 1."""
    training = training or [1 - 0.1 * index for index in range(len(held_out))]
    return [
        Validated(
            step=10 * index,
            training=seen,
            base_training=1.0,
            held_out=unseen,
            base_held_out=None if unseen is None else 1.0,
        )
        for index, (seen, unseen) in enumerate(zip(training, held_out, strict=True))
    ]


@pytest.mark.parametrize(
    ("training", "change", "kind"),
    [
        (0.9, 0.05, "learning"),
        (0.999, 0.001, "not_learning"),
        (1.5, 0.05, "too_hot"),
        (0.8, 0.9, "too_hot"),
    ],
)
def test_early_verdicts(training: float, change: float, kind: str) -> None:
    event = Validated(step=50, training=training, base_training=1.0, change={"unet.x": change})
    assert verdict.early(event).kind == kind


def test_overfitting_is_told_since_the_lowest_loss() -> None:
    warning = verdict.overfitting(_history([1.0, 0.7, 0.75, 0.8]))
    assert warning is not None
    assert "since step 10" in warning.message
    # One bad measurement is no trend, neither is a rise that training images share.
    assert verdict.overfitting(_history([1.0, 0.7, 0.69, 0.75])) is None
    assert verdict.overfitting(_history([1.0, 0.7, 0.75, 0.8], [1.0, 0.6, 0.7, 0.8])) is None
    assert verdict.overfitting(_history([None] * 4)) is None


def test_patience_counts_validations_since_the_lowest() -> None:
    history = _history([1.0, 0.7, 0.8, 0.75])
    assert verdict.out_of_patience(history, 2)
    assert not verdict.out_of_patience(history, 3)


losses = st.lists(st.floats(0.01, 2), min_size=1, max_size=12)


@given(losses, st.data())
def test_the_recommended_checkpoint_is_the_best_of_those_measured(
    held_out: list[float], data: st.DataObject
) -> None:
    history = _history(held_out, [1.0] * len(held_out))
    steps = [event.step for event in history]
    saved = data.draw(st.lists(st.sampled_from(steps), unique=True))
    chosen, words = verdict.recommendation(history, saved)
    by_step = dict(zip(steps, held_out, strict=True))
    assert by_step[chosen] == min(by_step[step] for step in saved or steps[-1:])
    assert f"Step {chosen} " in words
    if saved and chosen != max(saved):
        assert "it has risen by" in words


def test_without_held_out_images_training_images_decide() -> None:
    step, words = verdict.recommendation(_history([None, None, None], [1.0, 0.5, 0.6]), [10, 20])
    assert step == 10
    assert "training images" in words
