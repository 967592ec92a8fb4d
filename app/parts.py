"""Pieces of HTML that several pages share. Markup escapes whatever is formatted into it."""

from __future__ import annotations

from collections.abc import Iterable

from markupsafe import Markup

from app.overview import Overview, overview
from app.workshop import Workshop
from trainer.events import spoken_duration

PAGES = (("Datasets", "/datasets"), ("Train", "/train"), ("Preview", "/preview"),
         ("Library", "/library"))  # fmt: skip


def header(active: str) -> Markup:
    """The mark and the way to the other pages."""
    links = Markup("").join(
        Markup('<a href="{}"{}>{}</a>').format(
            address, Markup(' aria-current="page"') if name == active else "", name
        )
        for name, address in PAGES
    )
    return Markup(
        '<header class="masthead"><a class="mark" href="/" aria-label="LoRA Atelier, home">'
        '<span class="swatch" aria-hidden="true"></span>LoRA Atelier</a>'
        "<nav>{}</nav></header>"
    ).format(links)


def job_strip(workshop: Workshop, already_shown: str | None = None) -> Markup:
    """The run being trained and how long the queue is; nothing if nothing is going on, or if the
    page shows that run anyway."""
    active, waiting = workshop.jobs.active(), workshop.jobs.waiting()
    shown = active or (waiting[0] if waiting else None)
    if shown is None or shown == already_shown:
        return Markup("")
    run = overview(workshop, shown)
    queue = len(waiting) - (0 if active else 1)
    return Markup(
        '<a class="job-strip" href="{address}">{badge}<strong>{title}</strong>'
        '<span class="figures">{figures}</span>{meter}<span class="queue">{queue}</span></a>'
    ).format(
        address=run.address,
        badge=badge(run),
        title=run.title,
        figures=figures(run),
        meter=meter(run),
        queue=f"+{queue} waiting" if queue > 0 else "",
    )


def badge(run: Overview) -> Markup:
    """The state of a run as a small coloured word."""
    return Markup('<span class="badge {}">{}</span>').format(run.tone, run.word)


def meter(run: Overview) -> Markup:
    """A bar of how much is done."""
    return Markup(
        '<span class="meter {tone}" role="progressbar" aria-label="Progress" aria-valuemin="0" '
        'aria-valuemax="100" aria-valuenow="{share}"><i style="width:{share}%"></i></span>'
    ).format(tone=run.tone, share=f"{100 * run.share:.1f}")


def figures(run: Overview) -> str:
    """Steps done and time left, in words."""
    if run.state.alive and run.history.status.message:
        return f"{run.history.status.message}…"
    words = f"{run.step:,} of {run.steps:,} steps".replace(",", " ") if run.steps else ""
    return (
        f"{words} · {spoken_duration(run.eta_seconds)} left"
        if run.eta_seconds is not None
        else words
    )


def size(count: int) -> str:
    """A number of bytes as people say it: `640 kB`, `37 MB`."""
    for unit, bytes_ in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= bytes_:
            return f"{count / bytes_:.3g} {unit}"
    return f"{count} bytes"


def empty(sentence: str, address: str = "", label: str = "") -> Markup:
    """A place with nothing in it yet: one sentence, and a button to change that."""
    button = Markup('<a class="button primary" href="{}">{}</a>').format(address, label)
    return Markup('<div class="empty"><p>{}</p>{}</div>').format(
        sentence, button if address else ""
    )


def notices(sentences: Iterable[str], tone: str = "warn") -> Markup:
    """Sentences that a person should read, as a list; nothing if there are none."""
    items = Markup("").join(Markup("<li>{}</li>").format(text) for text in sentences)
    return Markup('<ul class="notices {}">{}</ul>').format(tone, items) if items else Markup("")


def facts_list(facts: Iterable[tuple[str, str]]) -> Markup:
    """Names and values, one below the other; what has no value is left out."""
    rows = Markup("").join(
        Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(name, value)
        for name, value in facts
        if value
    )
    return Markup('<dl class="facts-list">{}</dl>').format(rows)


def title(text: str, lead: str = "") -> Markup:
    """The heading of a page and one line under it."""
    under = Markup("<p>{}</p>").format(lead) if lead else ""
    return Markup('<div class="title"><h1>{}</h1>{}</div>').format(text, under)


def run_card(run: Overview) -> Markup:
    """A run in a list: cover, title, state, progress; all of it leads to the run."""
    cover = (
        Markup('<img src="{}" alt="" loading="lazy">').format(run.cover)
        if run.cover
        else Markup('<span class="no-cover" aria-hidden="true"></span>')
    )
    return Markup(
        '<a class="run-card" href="{address}">{cover}<span class="about"><strong>{title}</strong>'
        '<span class="figures">{figures}</span></span>{badge}{meter}</a>'
    ).format(
        address=run.address,
        cover=cover,
        title=run.title,
        figures=figures(run),
        badge=badge(run),
        meter=meter(run),
    )
