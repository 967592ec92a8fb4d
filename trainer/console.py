"""A run on the terminal: a progress bar, and a line for whatever else happens."""

from __future__ import annotations

import sys
from typing import Self

from tqdm import tqdm

from trainer import events
from trainer.run import Run


class Console:
    """Shows the events of one attempt; a context manager, so that the bar is closed whatever
    happens. Where standard error is no terminal, only lines are printed."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._bar: tqdm[None] | None = None
        self._stage = ""
        self._steps = 0

    def hear(self, event: events.Event) -> None:
        """Shows one event."""
        match event:
            case events.Preparing(stage=stage, done=done, total=total):
                self._advance(stage, done, total)
            case events.Ready():
                share = event.trained_parameters / event.base_parameters
                self._close()
                self._steps = event.steps
                self._say(
                    f"Training {event.trained_parameters:,} parameters ({share:.2%} of the base) "
                    f"on {event.images} images, {event.held_out} held out, on {event.device} in "
                    f"{event.precision}; the file will be about {event.file_bytes / 1e6:.1f} MB."
                )
            case events.Step():
                self._advance("Training", event.step, self._steps)
                if self._bar is not None:
                    self._bar.set_postfix_str(f"loss {event.loss:.4f}")
            case events.Validated():
                self._say(f"Step {event.step}: {event.words}")
            case events.Verdict():
                self._say(f"Step {event.step}: {event.message}")
            case events.Forecast():
                self._say(event.words)
            case events.Sampled():
                self._say(f"Step {event.step}: samples in {self._run.path / event.files[0]}")
            case events.Notice():
                self._say(f"Note: {event.message}")
            case events.Changed():
                self._say(event.message)
            case events.Paused():
                self._say(f"Paused: {event.message}.")
            case events.Continued():
                self._say("Going on.")
            case events.Recommended():
                self._say(f"Recommended: {self._run.path / event.file}. {event.why}")
            case events.Stopping():
                self._say("Stopping: saving where it stands.")
            case events.Stopped():
                self._close()
                self._say(
                    f"Stopped after step {event.step}. Go on with: atelier resume {self._run.path}"
                )
            case events.Finished():
                self._close()
                self._say(f"Finished: {self._run.path / event.adapter}")
            case _:
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self._close()

    def _advance(self, stage: str, done: int, total: int) -> None:
        if not sys.stderr.isatty():
            return
        if self._bar is None or self._stage != stage:
            self._close()
            self._stage = stage
            self._bar = tqdm(desc=stage, total=total, file=sys.stderr, dynamic_ncols=True)
        self._bar.n = done
        self._bar.refresh()

    def _say(self, line: str) -> None:
        tqdm.write(line, file=sys.stderr)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
