"""One run as it goes: progress, curve, samples, log, and the buttons that fit its state."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any

import gradio as gr
from markupsafe import Markup

from app import media, parts
from app.chart import loss_chart
from app.faults import guarded
from app.overview import Overview, overview
from app.pages import run_outcome
from app.pages.frame import AT_ONCE, GO, LATEST, TELLING
from app.workshop import Workshop
from trainer.run import Request, Run, State

_BUSY_SECONDS, _CALM_SECONDS = 1.0, 4.0
_COLUMNS_SHOWN = 12
_LOG_BYTES = 16_000
_DRAWN = ("head", "chart", "samples", "checkpoints", "log")


class RunView:
    """Draws a run inside the train page. What a page shows already is not sent again: `seen` holds
    a digest of each piece, and comes back with every tick."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop

    def draw(self, demo: Any) -> None:
        self.id = gr.Textbox("", visible=False)
        self.seen = gr.Textbox("", visible=False)
        self.head = gr.HTML("", elem_id="run-head")
        with gr.Row(elem_classes="actions"):
            self.resume = gr.Button("Resume", variant="primary", elem_id="resume", visible=False)
            self.stop = gr.Button("Stop and save", elem_id="stop", visible=False)
            self.sample = gr.Button("Sample now", elem_id="sample-now", visible=False)
            self.save = gr.Button("Save now", elem_id="save-now", visible=False)
            self.kill = gr.Button("Force stop", variant="stop", elem_id="kill", visible=False)
        with gr.Row(elem_classes="bench"):
            with gr.Column(scale=3, min_width=320):
                gr.HTML("<h2>Loss</h2>")
                self.chart = gr.HTML("", elem_id="chart")
                self.logarithmic = gr.Checkbox(False, label="Logarithmic", elem_id="logarithmic",
                                               container=False)  # fmt: skip
            with gr.Column(scale=2, min_width=300):
                self.samples = gr.HTML("", elem_id="samples")
        with gr.Accordion("Checkpoints", open=False, elem_id="checkpoints"):
            self.checkpoints = gr.HTML("")
        with gr.Accordion("Log", open=False, elem_id="log") as self.log_fold:
            self.log = gr.HTML("", elem_id="log-text")
        self.remove = gr.Button("Delete this run", size="sm", variant="stop", elem_id="remove-run",
                                visible=False)  # fmt: skip
        with gr.Column(visible=False, elem_classes="dialog") as self.deleting:
            gr.HTML("<h2>Delete this run?</h2><p>Its checkpoints, samples and adapter go with it. "
                    "It cannot be undone.</p>")  # fmt: skip
            with gr.Row():
                self.keep = gr.Button("Keep it", elem_id="keep-run", min_width=100)
                self.delete = gr.Button("Delete", variant="stop", elem_id="delete-run",
                                        min_width=100)  # fmt: skip
        self.address = gr.Textbox("", visible=False)
        self.timer = gr.Timer(_BUSY_SECONDS)
        self._connect(demo)

    def _connect(self, demo: Any) -> None:
        asked = [self.id, self.seen, self.logarithmic]
        shown = [
            self.head, self.chart, self.samples, self.checkpoints, self.log, self.log_fold,
            self.resume, self.stop, self.sample, self.save, self.kill, self.remove, self.timer,
            self.seen,
        ]  # fmt: skip
        demo.load(_asked_run, None, self.id, **AT_ONCE).then(self.look, asked, shown, **AT_ONCE)
        self.timer.tick(self.look, asked, shown, trigger_mode="once", **AT_ONCE)
        self.logarithmic.input(self.look, asked, shown, **LATEST)
        for button, opens in ((self.remove, True), (self.keep, False)):
            button.click(partial(gr.update, visible=opens), None, self.deleting, **AT_ONCE)
        self.delete.click(self.discard, self.id, self.address, **AT_ONCE)
        self.address.change(None, self.address, None, js=GO)
        for button, does in (
            (self.resume, self.go_on),
            (self.stop, self.ask_stop),
            (self.sample, self.ask_sample),
            (self.save, self.ask_save),
            (self.kill, self.end),
        ):
            told = button.click(does, self.id, None, **TELLING)
            told.then(self.look, asked, shown, **AT_ONCE)

    @guarded
    def look(self, id: str, seen: str, logarithmic: bool) -> list[Any]:
        """Updates for what has changed since this page looked last."""
        if not id or id not in self.workshop.jobs.ids():
            return [gr.skip()] * 14
        run = overview(self.workshop, id)
        pieces = {
            "head": str(_head(run)),
            "chart": str(_chart(run, logarithmic)),
            "samples": str(_samples(run)),
            "checkpoints": str(run_outcome.checkpoints(run)),
            "log": str(_log(self.workshop.jobs.run(id))),
        }
        before = dict(zip((*_DRAWN, "word"), seen.split(), strict=False))
        now = {name: _digest(html) for name, html in pieces.items()} | {"word": _digest(run.word)}
        drawn = [pieces[n] if now[n] != before.get(n) else gr.skip() for n in _DRAWN]
        controls = _controls(run) if now["word"] != before.get("word") else [gr.skip()] * 8
        return [*drawn, *controls, " ".join(now[name] for name in (*_DRAWN, "word"))]

    @guarded
    def go_on(self, id: str) -> None:
        """Queues the run once more."""
        self.workshop.jobs.submit(id)

    @guarded
    def ask_stop(self, id: str) -> None:
        """Asks the trainer to finish its step, save and end."""
        self._ask(id, "stop")

    @guarded
    def ask_sample(self, id: str) -> None:
        """Asks for sample images after the current step."""
        self._ask(id, "sample")
        gr.Info("Samples come after the current step.", duration=4)

    @guarded
    def ask_save(self, id: str) -> None:
        """Asks for a checkpoint after the current step."""
        self._ask(id, "save")
        gr.Info("A checkpoint is saved after the current step.", duration=4)

    @guarded
    def end(self, id: str) -> None:
        """Kills a trainer that does not answer."""
        self.workshop.jobs.kill(id)

    @guarded
    def discard(self, id: str) -> str:
        """Deletes the run, once its owner has confirmed it, and says where to go then."""
        self.workshop.jobs.delete(id)
        return "/train"

    def _ask(self, id: str, wanted: Request) -> None:
        self.workshop.jobs.ask(id, wanted)


def _asked_run(request: gr.Request) -> str:
    return str(request.query_params.get("run", ""))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _controls(run: Overview) -> list[Any]:
    """The log's fold, the buttons, and how often to look, as the state wants them."""
    working = run.state in (State.STARTING, State.RUNNING, State.PAUSED)
    resume = "Start" if run.word in ("draft", "did not start") else "Resume"
    waiting = run.word == "queued"
    return [
        gr.update(open=run.tone == "bad"),
        gr.update(visible=run.may_start, value=resume),
        gr.update(
            visible=working or waiting, value="Leave the queue" if waiting else "Stop and save"
        ),
        gr.update(visible=run.state is State.RUNNING),
        gr.update(visible=run.state is State.RUNNING),
        gr.update(visible=run.state is State.STOPPING),
        gr.update(visible=not run.state.alive),
        gr.Timer(_BUSY_SECONDS if run.state.alive or waiting else _CALM_SECONDS),
    ]


def _head(run: Overview) -> Markup:
    status = run.history.status
    speed = f"{status.steps_per_second:.1f} steps/s" if status.steps_per_second else ""
    return Markup(
        '<div class="run-title"><h1>{title}</h1>{badge}</div>'
        '<p class="run-figures"><strong>{figures}</strong><span>{speed}</span><span>{device}</span>'
        "</p>{meter}{forecast}{trouble}{outcome}"
    ).format(
        title=run.title,
        badge=parts.badge(run),
        figures=parts.figures(run),
        speed=speed if run.state is State.RUNNING else "",
        device=f"on {run.history.ready.device}" if run.history.ready else "",
        meter=parts.meter(run),
        trouble=_trouble(run),
        forecast=run_outcome.forecast(run),
        outcome=run_outcome.outcome(run),
    )


def _trouble(run: Overview) -> Markup:
    status = run.history.status
    notices = parts.notices(notice.message for notice in run.history.notices)
    match run.word:
        case "failed":
            message, advice = status.message, status.advice
        case "did not start":
            message, advice = "The trainer ended before it began.", "The log says why."
        case "paused":
            message, advice = f"{status.message}.", ""
        case "interrupted":
            message = "The trainer was ended from outside, or the machine went down."
            advice = "Resume goes on from the last checkpoint."
        case _:
            return notices
    return Markup('<div class="trouble {}"><strong>{}</strong> {}</div>{}').format(
        run.tone, message, advice, notices
    )


def _chart(run: Overview, logarithmic: bool) -> Markup:
    history = run.history
    return loss_chart(history.losses, history.validations, run.steps, logarithmic)


def _samples(run: Overview) -> Markup:
    """Sample images: a row for each prompt, a column for each step, the newest last."""
    shown = [it for it in run.history.samples if it.files][-_COLUMNS_SHOWN:]
    if not shown:
        wanted = run.settings.samples.prompts if run.settings else ()
        soon = "Samples appear here while it trains." if wanted else "No sample prompts were given."
        return Markup('<h2>Samples</h2><div class="chart-empty">{}</div>').format(soon)
    rows = Markup("").join(
        Markup('<div class="prompt-row"><p>{}</p><div class="strip">{}</div></div>').format(
            prompt, _strip(run, row)
        )
        for row, prompt in enumerate(shown[-1].prompts)
    )
    return Markup("<h2>Samples</h2>{}").format(rows)


def _strip(run: Overview, row: int) -> Markup:
    shown = [it for it in run.history.samples if len(it.files) > row][-_COLUMNS_SHOWN:]
    return Markup("").join(
        Markup(
            '<figure><a href="{src}" target="_blank"><img src="{src}" alt="{prompt}, step {step}" '
            'loading="lazy"></a><figcaption>step {step}</figcaption></figure>'
        ).format(
            src=media.run_sample(run.id, it.files[row], run.history.status.attempt),
            prompt=it.prompts[row],
            step=it.step,
        )
        for it in reversed(shown)
    )


def _log(run: Run) -> Markup:
    """The end of the log."""
    if not run.log_file.exists():
        return Markup('<p class="quiet">Nothing yet.</p>')
    with run.log_file.open("rb") as file:
        file.seek(max(0, run.log_file.stat().st_size - _LOG_BYTES))
        text = file.read().decode(errors="replace")
    # A progress bar rewrites its line; only what it says last is worth a line here.
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    return Markup("<pre>{}</pre>").format("\n".join(lines))
