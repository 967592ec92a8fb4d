"""What a run amounts to, as its page shows it: verdicts, the checkpoint to use, and all others."""

from __future__ import annotations

from markupsafe import Markup

from app import media, parts
from app.overview import Overview
from trainer import events
from trainer.run import State

_NOTHING = Markup("")


def outcome(run: Overview) -> Markup:
    """What the measurements say, which checkpoint to use, and where to go from here."""
    return _verdicts(run) + _last_measurement(run) + _recommended(run) + _links(run)


def forecast(run: Overview) -> Markup:
    """What the run will take, while it is being trained."""
    said = run.history.forecast
    if said is None or not run.state.alive:
        return _NOTHING
    return Markup('<p class="forecast quiet">{}</p>').format(said.words)


def checkpoints(run: Overview) -> Markup:
    """Every checkpoint with what was measured at it, to be looked at or downloaded."""
    if not run.history.checkpoints:
        return Markup('<p class="quiet">None yet.</p>')
    measured = {event.step: event for event in run.history.validations}
    best = run.history.recommended.step if run.history.recommended else None
    steps = sorted({event.step for event in run.history.checkpoints}, reverse=True)
    rows = Markup("").join(_row(run, step, measured.get(step), step == best) for step in steps)
    return Markup(
        '<table class="checkpoints"><thead><tr><th>Step</th><th>Loss held out</th>'
        "<th>Loss training</th><th></th></tr></thead><tbody>{}</tbody></table>"
    ).format(rows)


def _row(run: Overview, step: int, seen: events.Validated | None, best: bool) -> Markup:
    ref = f"run:{run.id}@{step}"
    return Markup(
        '<tr data-step="{step}"{marked}><td>{step}{star}</td><td>{held_out}</td><td>{training}</td>'
        '<td><a href="/preview?adapter={ref}">Preview</a> '
        '<a href="{file}" download>Download</a></td></tr>'
    ).format(
        step=step,
        marked=Markup(' class="best"') if best else "",
        star=Markup(" <strong>recommended</strong>") if best else "",
        held_out=f"{seen.held_out:.4f}" if seen and seen.held_out is not None else "–",
        training=f"{seen.training:.4f}" if seen else "–",
        ref=ref,
        file=media.download(ref),
    )


def _verdicts(run: Overview) -> Markup:
    """The newest verdict on learning, and on overfitting."""
    newest = {event.kind == "overfitting": event for event in run.history.verdicts}
    said = _NOTHING
    for event in newest.values():
        said += parts.notices([event.message], "calm" if event.kind == "learning" else "warn")
    return Markup('<div class="verdicts">{}</div>').format(said) if said else said


def _last_measurement(run: Overview) -> Markup:
    if not run.history.validations or run.history.validations[-1].step == 0:
        return _NOTHING
    last = run.history.validations[-1]
    loss, base, on = last.held_out, last.base_held_out, "images held out"
    if loss is None or base is None:
        loss, base, on = last.training, last.base_training, "training images"
    if not base:
        return _NOTHING
    better = 100 * (1 - loss / base)
    return Markup(
        '<p class="verdict"><strong>{} % {}</strong> than the base on {} '
        '<span class="quiet">(loss {} against {})</span></p>'
    ).format(
        f"{abs(better):.0f}",
        "lower loss" if better >= 0 else "higher loss",
        on,
        f"{loss:.4f}",
        f"{base:.4f}",
    )


def _recommended(run: Overview) -> Markup:
    """The checkpoint to use and why; its buttons unless it is what the run's adapter is."""
    advice = run.history.recommended
    if advice is None or run.state.alive:
        return _NOTHING
    ref, buttons = f"run:{run.id}@{advice.step}", _NOTHING
    if run.state is not State.FINISHED or advice.step != run.step:
        buttons = Markup(
            '<div class="actions"><a class="button primary" href="/preview?adapter={ref}">Preview '
            'step {step}</a><a class="button" href="{file}" download>Download step {step}</a></div>'
        ).format(ref=ref, step=advice.step, file=media.download(ref))
    return Markup(
        '<div class="recommended"><p><strong>Use the checkpoint of step {}.</strong> {}</p>{}</div>'
    ).format(advice.step, advice.why, buttons)


def _links(run: Overview) -> Markup:
    if run.state is State.FINISHED:
        ref = f"run:{run.id}"
        return Markup(
            '<div class="actions"><a class="button primary" href="/preview?adapter={ref}">See it '
            'at different strengths</a><a class="button" href="{file}" download>Download the '
            'adapter</a><a class="button" href="/train?from={id}">Train again from these settings'
            "</a></div>"
        ).format(ref=ref, file=media.download(ref), id=run.id)
    if run.may_start and run.word != "draft":
        return Markup(
            '<p class="verdict"><a href="/train?from={}">Start again with other settings</a></p>'
        ).format(run.id)
    return _NOTHING
