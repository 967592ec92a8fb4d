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


def early(event: Validated) -> Verdict:
    """Whether the adapter is learning, from the first validation after some steps."""
    gained = 1 - event.training / event.base_training
    change = max(event.change.values(), default=0.0)
    numbers = f"loss on training images {gained:+.1%} better, a block changed by {change:.2%}"
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


def out_of_patience(history: Sequence[Validated], patience: int) -> bool:
    """Whether the last `patience` validations brought no new lowest loss."""
    lowest = best(history)
    return sum(event.step > lowest.step for event in history) >= patience


def recommendation(history: Sequence[Validated], checkpoints: Sequence[int]) -> tuple[int, str]:
    """The step of the checkpoint to use, and why, in words.

    Only steps that were measured and have a checkpoint can be recommended; if there is none, the
    last measured step is, whose adapter is the run's.
    """
    candidates = [event for event in history if event.step in checkpoints] or [history[-1]]
    chosen, last = best(candidates), candidates[-1]
    which = "training" if chosen.held_out is None else "held-out"
    gained = 1 - judged(chosen) / base_of(chosen)
    words = (
        f"Step {chosen.step} has the lowest loss on {which} images, {judged(chosen):.4f}, "
        f"{gained:.1%} below the base's {base_of(chosen):.4f}"
    )
    if chosen.step != last.step:
        rise = judged(last) / judged(chosen) - 1
        words += f"; by step {last.step} it has risen by {rise:.1%}"
    return chosen.step, words + "."
