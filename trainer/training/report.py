"""`report.json`: what a run amounts to, for people and programs that come later.

The recommended checkpoint stands beside its evidence: every measurement, the loss curve, and which
checkpoint has which samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from trainer import events, states
from trainer.run import Run
from trainer.training.prepare import Prepared
from trainer.training.reporter import Reporter

_MOST_POINTS = 1000


def build_report(
    run: Run,
    prepared: Prepared,
    reporter: Reporter,
    history: Sequence[events.Validated],
    advice: events.Recommended | None,
) -> dict[str, Any]:
    """The report of a run as plain JSON; `advice` is None if no checkpoint was measured."""
    said, file = run.read_events()[0], run.adapter_file
    said = in_force(said)
    began = max(at for at, event in enumerate(said) if isinstance(event, events.Started))
    forecasts = [event for event in said[began:] if isinstance(event, events.Forecast)]
    finished = file.exists()
    return {
        "steps": reporter.done,
        "seconds": round(reporter.seconds(), 1),
        "forecast_seconds": round(forecasts[0].total_seconds, 1) if forecasts else None,
        "device": str(prepared.model.device),
        "trained_parameters": prepared.trained_parameters,
        "base_parameters": prepared.base_parameters,
        "share_of_base": prepared.trained_parameters / prepared.base_parameters,
        "adapter": file.name if finished else None,
        "file_bytes": file.stat().st_size if finished else None,
        "skipped_steps": reporter.skipped,
        "skipped_images": sorted(file.name for file in reporter.unreadable),
        "recommended": advice.model_dump(include={"step", "file", "why"}) if advice else None,
        "verdicts": [
            event.model_dump(include={"step", "kind", "message"})
            for event in said
            if isinstance(event, events.Verdict)
        ],
        "final": history[-1].words if history else None,
        "held_out_improvement": history[-1].improvement if history else None,
        "validations": [event.model_dump(exclude={"time", "type"}) for event in history],
        "checkpoints": _checkpoints(run, said, history),
        "losses": _thinned([(it.step, it.loss) for it in said if isinstance(it, events.Step)]),
    }


def in_force(said: Iterable[events.AnyEvent]) -> list[events.AnyEvent]:
    """The events without those of steps that a later attempt did anew."""
    kept: list[events.AnyEvent] = []
    for event in said:
        if isinstance(event, events.Started):
            kept = [it for it in kept if getattr(it, "step", 0) <= event.from_step]
        kept.append(event)
    return kept


def _checkpoints(
    run: Run, said: Sequence[events.AnyEvent], history: Sequence[events.Validated]
) -> list[dict[str, Any]]:
    """Every adapter that can be chosen, with its losses and its samples."""
    measured = {event.step: event for event in history}
    samples = {event.step: event.files for event in said if isinstance(event, events.Sampled)}
    listed = []
    for file in sorted(run.checkpoints.glob("step-*.safetensors"), key=states.step_of):
        step = states.step_of(file)
        seen = measured.get(step)
        listed.append(
            {
                "step": step,
                "file": file.relative_to(run.path).as_posix(),
                "training": seen.training if seen else None,
                "held_out": seen.held_out if seen else None,
                "samples": list(samples.get(step, ())),
            }
        )
    return listed


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most so many points, the last among them."""
    stride = -(-len(points) // _MOST_POINTS) or 1
    return list(points[::-1][::stride][::-1])
