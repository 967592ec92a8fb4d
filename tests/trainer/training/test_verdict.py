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
def test_how_it_goes(training: float, change: float, kind: str) -> None:
    event = Validated(step=50, training=training, base_training=1.0, change={"unet.x": change})
    assert verdict.learning(event).kind == kind


def test_a_verdict_is_told_early_and_whenever_it_changes() -> None:
    history = _history([1.0, 1.0, 0.9, 0.8, 1.0], [1.0, 1.0, 0.9, 0.8, 1.2])
    told = [verdict.newest(history[:count]) for count in range(1, 6)]
    assert [said and said.kind for said in told] == [
        None, "not_learning", "learning", None, "too_hot",
    ]  # fmt: skip
    overfitted = _history([1.0, 0.7, 0.75, 0.8, 0.85])
    told = [verdict.newest(overfitted[:count]) for count in range(2, 6)]
    assert [said and said.kind for said in told] == ["learning", None, "overfitting", "overfitting"]


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
    assert not verdict.out_of_patience([], 1)


losses = st.lists(st.floats(0.01, 2), min_size=1, max_size=12)


@given(losses, st.data())
def test_the_recommended_checkpoint_is_the_best_of_those_measured(
    held_out: list[float], data: st.DataObject
) -> None:
    history = _history(held_out, [1.0] * len(held_out))
    steps = [event.step for event in history]
    saved = data.draw(st.lists(st.sampled_from(steps), min_size=1, unique=True))
    advice = verdict.recommendation(history, saved)
    assert advice is not None
    chosen, words = advice
    by_step = dict(zip(steps, held_out, strict=True))
    assert by_step[chosen] == min(by_step[step] for step in saved)
    assert f"Step {chosen} " in words
    assert ("above the base's" in words) == (by_step[chosen] > 1)
    if chosen != max(saved):
        rise = by_step[max(saved)] / by_step[chosen] - 1
        assert ("it has risen by" if rise >= 0.005 else "it is no lower") in words


def test_without_held_out_images_training_images_decide() -> None:
    advice = verdict.recommendation(_history([None, None, None], [1.0, 0.5, 0.6]), [10, 20])
    assert advice is not None
    step, words = advice
    assert step == 10
    assert "training images" in words


def test_what_was_not_measured_is_not_recommended() -> None:
    assert verdict.recommendation(_history([1.0, 0.5]), [25]) is None
