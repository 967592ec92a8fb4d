"""A run as lists and headers show it: its title and state in words, its progress, its cover."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from app import media
from app.history import History
from app.workshop import Workshop
from trainer.errors import SettingsError
from trainer.run import State
from trainer.settings import Settings

Tone = Literal["calm", "busy", "good", "bad", "warn"]

_TONES: dict[State, Tone] = {
    State.DRAFT: "calm",
    State.STARTING: "busy",
    State.RUNNING: "busy",
    State.PAUSED: "warn",
    State.STOPPING: "busy",
    State.STOPPED: "calm",
    State.INTERRUPTED: "warn",
    State.FINISHED: "good",
    State.FAILED: "bad",
}


@dataclass(frozen=True)
class Overview:
    """A run at a glance. `word` is its state as people see it, the queue included."""

    id: str
    title: str
    state: State
    word: str
    tone: Tone
    step: int
    steps: int
    eta_seconds: float | None
    cover: str | None
    history: History
    settings: Settings | None

    @property
    def share(self) -> float:
        """Part of the steps that is done, from 0 to 1."""
        return min(1.0, self.step / self.steps) if self.steps else 0.0

    @property
    def address(self) -> str:
        return f"/train?run={self.id}"

    @property
    def may_start(self) -> bool:
        return self.word in ("draft", "did not start") or (
            self.state.resumable and self.word != "queued"
        )


def overview(workshop: Workshop, id: str) -> Overview:
    """The run of that id at this moment.

    Raises:
        RunDirectoryError: if there is none.
    """
    run = workshop.jobs.run(id)
    history = workshop.histories.of(run)
    state = workshop.jobs.state(id)
    word, tone = str(state), _TONES[state]
    if not state.alive and id in workshop.jobs.waiting():
        word, tone = "queued", "calm"
    elif workshop.jobs.did_not_start(id):
        word, tone = "did not start", "bad"
    try:
        settings = run.settings()
    except SettingsError:
        settings = None
    status = history.status
    return Overview(
        id=id,
        title=workshop.library.title(id),
        state=state,
        word=word,
        tone=tone,
        step=status.step,
        steps=status.steps or (settings.training.steps if settings else 0),
        eta_seconds=status.eta_seconds if state is State.RUNNING else None,
        cover=cover(id, history),
        history=history,
        settings=settings,
    )


def cover(id: str, history: History) -> str | None:
    """Address of the first image of the newest samples."""
    for sampled in reversed(history.samples):
        if sampled.files:
            return media.run_sample(id, sampled.files[0], history.status.attempt)
    return None
