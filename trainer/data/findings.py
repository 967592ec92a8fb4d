"""What is worth telling about a dataset: one function for each kind of finding."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from trainer.data import captions, looks
from trainer.data.buckets import Size, crop_box
from trainer.data.dataset import Entry, Listing
from trainer.data.looks import Look
from trainer.data.names import listed, printable, shown
from trainer.data.tokens import Tokenizer
from trainer.errors import DatasetError

Severity = Literal["error", "warning", "note"]

_CROPPED_SHARE = 0.2
_FEWEST_FOR_WORDS = 4  # of two or three captions, many words are shared by chance
_FILLERS = frozenset({"a", "an", "and", "at", "by", "for", "from", "in", "is", "it", "its", "of",
                      "on", "or", "the", "to", "with"})  # fmt: skip


class Finding(BaseModel):
    """Something about a dataset. `error`: training refuses it; `warning`: it will be the worse for
    it; `note`: good to know.

    `files` are paths inside the dataset. `fix` says what to do; `fixable`, that it can be done
    automatically, in a way that can be undone.
    """

    model_config = ConfigDict(frozen=True)

    severity: Severity
    code: str
    message: str
    files: tuple[str, ...] = ()
    fix: str = ""
    fixable: bool = False


@dataclass(frozen=True)
class Seen:
    """An image that could be read: its entry, its look, and the bucket that it belongs to."""

    entry: Entry
    look: Look
    bucket: Size
    file: str
    """Its path inside the dataset, printable."""


@dataclass(frozen=True)
class Facts:
    """All that the findings are drawn from."""

    folder: Path
    listing: Listing
    seen: tuple[Seen, ...]
    broken: tuple[tuple[Path, DatasetError], ...]
    trigger: str | None
    tokenizer: Tokenizer
    max_tokens: int

    def name(self, path: Path) -> str:
        """A path inside the dataset, printable."""
        inside = path.is_relative_to(self.folder)
        return printable((path.relative_to(self.folder) if inside else path).as_posix())


def find_all(facts: Facts) -> tuple[Finding, ...]:
    """All findings, the gravest first."""
    finders = (
        _unreadable, _copies, _uncaptioned, _triggerless, _overlong, _recoded, _small, _blurred,
        _cropped, _several, _orphans, _remarks, _everywhere,
    )  # fmt: skip
    found = [finding for finder in finders for finding in finder(facts)]
    rank = {"error": 0, "warning": 1, "note": 2}
    return tuple(sorted(found, key=lambda finding: rank[finding.severity]))


def _unreadable(facts: Facts) -> Iterator[Finding]:
    for path, error in facts.broken:
        yield Finding(
            severity="error",
            code="broken_image",
            message=error.what,
            files=(facts.name(path),),
            fix="Replace it, or set it aside in the hidden folder .removed.",
            fixable=path.is_relative_to(facts.folder),  # a mask may lie elsewhere
        )
    for error in facts.listing.problems:
        yield Finding(
            severity="error", code="broken_text", message=error.what, fix=error.advice or ""
        )


def _copies(facts: Facts) -> Iterator[Finding]:
    """Groups of pictures that look alike; those that are the same file are told apart."""
    for group in looks.alike([seen.look.likeness for seen in facts.seen]):
        seen = [facts.seen[index] for index in group]
        by_content: dict[bytes, list[Seen]] = {}
        for one in seen:
            by_content.setdefault(one.look.digest, []).append(one)
        for same in by_content.values():
            if len(same) > 1:
                same.sort(key=lambda one: not one.entry.caption)  # the first is the one to keep
                yield Finding(
                    severity="warning",
                    code="copies",
                    message=f"Copies of one file: {listed(_files(same))}.",
                    files=_files(same),
                    fix="Keep the first and set the others aside in the hidden folder .removed; "
                    "to weigh an image more, use repeats.",
                    fixable=True,
                )
        if len(by_content) > 1:
            different = [same[0] for same in by_content.values()]
            yield Finding(
                severity="warning",
                code="look_alikes",
                message=f"Almost the same: {listed(_files(different))}.",
                files=_files(different),
                fix="Keep the best of them: what is shown more often is learned more.",
            )


def _uncaptioned(facts: Facts) -> Iterator[Finding]:
    without = [seen for seen in facts.seen if not seen.entry.caption]
    if without:
        yield Finding(
            severity="warning",
            code="no_caption",
            message=f"{_number(without)} without a caption, or with an empty one.",
            files=_files(without),
            fix="Write in a .txt file of the same name what is to be seen.",
        )


def _triggerless(facts: Facts) -> Iterator[Finding]:
    if facts.trigger is None:
        return
    without = [s for s in facts.seen if not captions.has_trigger(s.entry.caption, facts.trigger)]
    if without:
        yield Finding(
            severity="note",
            code="no_trigger",
            message=f'{_number(without)} without the trigger "{facts.trigger}" in the caption.',
            files=_files(without),
            fix="Training puts it in front by itself; the captions can be changed to show it.",
            fixable=True,
        )


def _overlong(facts: Facts) -> Iterator[Finding]:
    """Captions past the tokens that are read, each with the words at which it is cut."""
    limit = facts.max_tokens
    for seen in facts.seen:
        read_as = captions.with_trigger(seen.entry.caption, facts.trigger)
        caption = unicodedata.normalize("NFC", read_as)
        ends = facts.tokenizer.ends(caption)
        if len(ends) > limit:
            read = " ".join(caption[: ends[limit - 1]].split()[-4:])
            triggered = ", with the trigger," if read_as != seen.entry.caption else ""
            yield Finding(
                severity="warning",
                code="long_caption",
                message=f"The caption of {seen.file}{triggered} has {len(ends)} tokens; what "
                f'follows "{shown(read)}" is past the {limit} that are read.',
                files=(seen.file,),
                fix="Shorten it, put what matters first, or read more by dataset.max_tokens.",
            )


def _recoded(facts: Facts) -> Iterator[Finding]:
    files = tuple(facts.name(path) for path in facts.listing.recoded)
    if files:
        yield Finding(
            severity="warning",
            code="not_utf8",
            message=f"Not in UTF-8, so that the encoding was guessed: {listed(files)}.",
            files=files,
            fix="Check that they read well, and save them as UTF-8.",
            fixable=True,
        )


def _small(facts: Facts) -> Iterator[Finding]:
    enlarged = {}
    for seen in facts.seen:
        measured = seen.look.measured
        by = max(seen.bucket.width / measured.width, seen.bucket.height / measured.height)
        if by > 1:
            enlarged[seen] = by
    if enlarged:
        yield Finding(
            severity="warning",
            code="too_small",
            message=f"{_number(enlarged)} smaller than the size of training, to be enlarged up to "
            f"{max(enlarged.values()):.1f} times.",
            files=_files(enlarged),
            fix="Use larger originals, or a lower resolution.",
        )


def _blurred(facts: Facts) -> Iterator[Finding]:
    blurred = [seen for seen in facts.seen if seen.look.blur > looks.BLURRED]
    if blurred:
        yield Finding(
            severity="warning",
            code="blurred",
            message=f"{_number(blurred)} blurred, as far as can be measured.",
            files=_files(blurred),
            fix="Look at them: blur is learned like everything else.",
        )


def _cropped(facts: Facts) -> Iterator[Finding]:
    cropped = []
    for seen in facts.seen:
        measured = seen.look.measured
        box = crop_box(measured.width, measured.height, seen.bucket)
        kept = (box.right - box.left) * (box.bottom - box.top) / measured.width / measured.height
        if 1 - kept > _CROPPED_SHARE:
            cropped.append(seen)
    if cropped:
        yield Finding(
            severity="note",
            code="cropped",
            message=f"{_number(cropped)} so long or so tall that over {_CROPPED_SHARE:.0%} is cut "
            "off.",
            files=_files(cropped),
            fix="Crop them yourself to what matters.",
        )


def _several(facts: Facts) -> Iterator[Finding]:
    several = [seen for seen in facts.seen if seen.look.measured.several]
    if several:
        yield Finding(
            severity="note",
            code="several",
            message=f"{_number(several)} animated or in pages; only the first picture is used.",
            files=_files(several),
        )


def _orphans(facts: Facts) -> Iterator[Finding]:
    files = tuple(facts.name(path) for path in facts.listing.orphans)
    if files:
        yield Finding(
            severity="note",
            code="no_image",
            message=f"Captions and masks without an image of the same name: {listed(files)}.",
            files=files,
        )


def _remarks(facts: Facts) -> Iterator[Finding]:
    for remark in facts.listing.remarks:
        yield Finding(severity="note", code="remark", message=remark)


def _everywhere(facts: Facts) -> Iterator[Finding]:
    texts = [seen.entry.caption for seen in facts.seen if seen.entry.caption]
    if len(texts) < _FEWEST_FOR_WORDS:
        return
    counts = Counter(word for text in texts for word in set(_words(text)))
    trigger = set(_words(facts.trigger or ""))
    words = [
        word
        for word in dict.fromkeys(_words(texts[0]))
        if counts[word] == len(texts) and word not in _FILLERS | trigger
    ]
    if words:
        yield Finding(
            severity="note",
            code="in_all_captions",
            message=f"In all captions: {', '.join(words)}. They will come to mean what the images "
            "have in common.",
            fix="Leave a word out if it should keep its meaning.",
        )


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_][\w'-]*", text.lower())


def _files(seen: Collection[Seen]) -> tuple[str, ...]:
    return tuple(one.file for one in seen)


def _number(seen: Collection[Seen]) -> str:
    return "1 image is" if len(seen) == 1 else f"{len(seen)} images are"
