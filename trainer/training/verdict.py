"""What the measurements of a run amount to, in words: pure functions of its validations."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.events import Validated, Verdict

# A change of the loss smaller than this is noise of the measurement, not learning.
_NOISE = 0.005
# Relative size of the adapter's change above which a base usually breaks.
_HOT_CHANGE = 0.5
_RISE = 0.02
_VALIDATIONS_OF_A_TREND = 2


def judged(event: Validated) -> float:
    """The loss that decides: on held-out images if there are any, else on training images."""
    return event.training if event.held_out is None else event.held_out


def base_of(event: Validated) -> float:
    """The base's loss on the same images."""
    return event.base_training if event.base_held_out is None else event.base_held_out


def best(history: Sequence[Validated]) -> Validated:
    """The validation with the lowest loss; the earliest of equals."""
    return min(history, key=judged)


def newest(history: Sequence[Validated]) -> Verdict | None:
    """What the newest validation tells that those before have not: how it goes, at the first one
    after some steps and whenever that changes, and overfitting."""
    trained = [event for event in history if event.step > 0]
    if not trained:
        return None
    now = learning(trained[-1])
    is_news = len(trained) == 1 or now.kind != learning(trained[-2]).kind
    return overfitting(history) or (now if is_news else None)


def learning(event: Validated) -> Verdict:
    """Whether the adapter is learning, by one validation."""
    gained = 1 - event.training / event.base_training
    change = max(event.change.values(), default=0.0)
    numbers = f"loss on training images {_against_base(gained)}, a block changed by {change:.2%}"
    if gained < -_RISE or change > _HOT_CHANGE:
        kind, words = "too_hot", "Too hot: the adapter is breaking the base. Lower the rate"
    elif gained < _NOISE:
        kind, words = "not_learning", "Not learning yet. Raise the rate, or check the captions"
    else:
        kind, words = "learning", "Learning"
    return Verdict(step=event.step, kind=kind, message=f"{words} ({numbers}).")


def overfitting(history: Sequence[Validated]) -> Verdict | None:
    """Since when held-out images get worse while training images get better; None if not."""
    held_out = [event for event in history if event.held_out is not None]
    if len(held_out) <= _VALIDATIONS_OF_A_TREND:
        return None
    lowest, recent = best(held_out), held_out[-_VALIDATIONS_OF_A_TREND:]
    worse = all(
        event.step > lowest.step
        and judged(event) > judged(lowest) * (1 + _RISE)
        and event.training < lowest.training
        for event in recent
    )
    if not worse:
        return None
    return Verdict(
        step=held_out[-1].step,
        kind="overfitting",
        message=f"Overfitting since step {lowest.step}: the loss on held-out images has risen from "
        f"{judged(lowest):.4f} to {judged(held_out[-1]):.4f}.",
    )


def _against_base(gained: float) -> str:
    return f"{abs(gained):.1%} {'below' if gained >= 0 else 'above'} the base's"


def out_of_patience(history: Sequence[Validated], patience: int) -> bool:
    """Whether the last `patience` validations brought no new lowest loss."""
    if not history:
        return False
    lowest = best(history)
    return sum(event.step > lowest.step for event in history) >= patience


def recommendation(
    history: Sequence[Validated], checkpoints: Sequence[int]
) -> tuple[int, str] | None:
    """The step of the checkpoint to use, and why, in words; None if no checkpoint was measured."""
    candidates = [event for event in history if event.step in checkpoints]
    if not candidates:
        return None
    chosen, last = best(candidates), candidates[-1]
    which = "training" if chosen.held_out is None else "held-out"
    gained = 1 - judged(chosen) / base_of(chosen)
    words = (
        f"Step {chosen.step} has the lowest loss on {which} images, {judged(chosen):.4f}, "
        f"{_against_base(gained)} {base_of(chosen):.4f}"
    )
    if chosen.step != last.step:
        rise = judged(last) / judged(chosen) - 1
        risen = f"has risen by {rise:.1%}" if rise >= _NOISE else "is no lower"
        words += f"; by step {last.step} it {risen}"
    return chosen.step, words + "."
