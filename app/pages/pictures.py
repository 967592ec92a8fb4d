"""Drawn pictures as HTML: one alone, off and on compared, a strip, and what was drawn before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from app import media
from trainer.preview.request import Drawing

ALONE, OFF_AND_ON = (1.0,), (0.0, 1.0)
BLANK = '<div class="easel blank"></div>'


def picture(drawing: Drawing, files: Sequence[Path], titles: Mapping[Path, str]) -> Markup:
    """Whatever was drawn, in the form that suits it."""
    if drawing.strip == ALONE:
        return _alone(drawing, files[0], titles)
    if drawing.strip == OFF_AND_ON:
        return _compared(drawing, files, titles)
    return _strip(drawing, files)


def waiting(word: str, share: float, id: str) -> Markup:
    """How far a drawing is, and a button to give it up."""
    return Markup(
        '<div class="waiting"><span>{}</span><span class="meter busy" role="progressbar" '
        'aria-valuemin="0" aria-valuemax="100" aria-valuenow="{share}"><i style="width:{share}%">'
        '</i></span><button class="button small" data-drawing="{id}">Cancel</button></div>'
    ).format(word, share=f"{100 * share:.0f}", id=id)


def history(drawings: Sequence[tuple[Drawing, Sequence[Path]]]) -> Markup:
    """What was drawn before, the newest first; each is a button that brings it back."""
    if not drawings:
        return Markup("")
    tiles = Markup("").join(_remembered(drawing, files) for drawing, files in drawings)
    return Markup(
        '<section><h2>Drawn before</h2><p class="quiet">Press one to see it and to use its '
        'settings again.</p><div class="tiles remembered">{}</div></section>'
    ).format(tiles)


def mixture(drawing: Drawing, titles: Mapping[Path, str]) -> str:
    """The adapters of a drawing and their strengths, in words."""
    if not drawing.adapters:
        return "no adapter"
    return " + ".join(f"{titles.get(it.file, it.file.stem)} {it.unet:g}" for it in drawing.adapters)


def _alone(drawing: Drawing, file: Path, titles: Mapping[Path, str]) -> Markup:
    strengths = " + ".join(f"{it.unet:g}" for it in drawing.adapters)
    return Markup(
        '<figure class="easel"><a href="{address}" target="_blank"><img src="{address}" '
        'alt="{prompt}" data-strength="{strengths}"></a><figcaption>{mixture} · seed {seed}'
        "</figcaption></figure>"
    ).format(
        address=media.drawing(file),
        prompt=drawing.prompt,
        strengths=strengths,
        mixture=mixture(drawing, titles),
        seed=drawing.seed,
    )


def _compared(drawing: Drawing, files: Sequence[Path], titles: Mapping[Path, str]) -> Markup:
    """Two pictures over one another; the slider moves the line between them (`script.js`)."""
    off, on = map(media.drawing, files)
    return Markup(
        '<figure class="easel versus"><div class="pair"><img src="{off}" alt="{prompt}, without">'
        '<img src="{on}" alt="{prompt}, with"><span class="side off">off</span>'
        '<span class="side on">on</span></div><input type="range" min="0" max="100" value="50" '
        'aria-label="Line between off and on"><figcaption>off against {mixture} · seed {seed}'
        "</figcaption></figure>"
    ).format(
        off=off,
        on=on,
        prompt=drawing.prompt,
        mixture=mixture(drawing, titles),
        seed=drawing.seed,
    )


def _strip(drawing: Drawing, files: Sequence[Path]) -> Markup:
    images = Markup("").join(
        Markup('<figure><img src="{}" alt="{}"><figcaption>{}</figcaption></figure>').format(
            media.drawing(file), f"{drawing.prompt} at {strength:g}", f"{strength:g}"
        )
        for strength, file in zip(drawing.strip, files, strict=True)
    )
    sheet = media.drawing(files[0].with_name("sheet.png"))
    return Markup(
        '<div class="strip">{}</div><p><a class="button small" href="{}" download>Download the '
        "strip</a></p>"
    ).format(images, sheet)


def _remembered(drawing: Drawing, files: Sequence[Path]) -> Markup:
    shown = files[-1]
    many = Markup('<span class="count">{}</span>').format(len(files)) if len(files) > 1 else ""
    return Markup(
        '<button class="tile" data-key="{}" title="{}"><img src="{}" alt="{}" loading="lazy">{}'
        "</button>"
    ).format(shown.parent.name, drawing.prompt, media.drawing(shown), drawing.prompt, many)
