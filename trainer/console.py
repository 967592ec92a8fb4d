"""A run on the terminal: a progress bar, and a line for whatever else happens."""

from __future__ import annotations

import sys
from types import TracebackType
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
                memory = f", {event.peak_memory / 1e9:.1f} GB" if event.peak_memory else ""
                self._say(f"About {event.total_seconds:.0f} s in all{memory}.")
            case events.Sampled():
                self._say(f"Step {event.step}: samples in {self._run.path / event.files[0]}")
            case events.Notice():
                self._say(f"Note: {event.message}")
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
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
