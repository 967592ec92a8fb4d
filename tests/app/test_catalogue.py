"""The catalogue: order of the queue, remarks, and that it survives being opened again."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from app.catalogue import Catalogue, Remark, Waiting


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return Catalogue(tmp_path / "catalogue.sqlite")


def test_the_queue_keeps_its_order_and_each_run_once(catalogue: Catalogue) -> None:
    for run in ("b", "a", "c", "a"):
        catalogue.enqueue(Waiting(run, 0))
    assert [entry.run for entry in catalogue.queue()] == ["b", "a", "c"]
    assert catalogue.dequeue("b")
    assert not catalogue.dequeue("b")
    catalogue.enqueue(Waiting("b", 3))
    assert catalogue.queue()[-1] == Waiting("b", 3)


def test_everything_is_there_after_a_restart(catalogue: Catalogue) -> None:
    catalogue.enqueue(Waiting("a", 2))
    catalogue.write_remark("run:a", Remark("Mira", "the good one", favourite=True))
    again = Catalogue(catalogue.path)
    assert again.queue() == [Waiting("a", 2)]
    assert again.remark("run:a") == Remark("Mira", "the good one", favourite=True)


def test_an_unknown_subject_has_an_empty_remark(catalogue: Catalogue) -> None:
    assert catalogue.remark("run:none") == Remark()
    catalogue.write_remark("run:a", Remark("x"))
    catalogue.forget("run:a")
    assert catalogue.remarks() == {}


def test_text_is_data(catalogue: Catalogue) -> None:
    title = "'); DROP TABLE remarks; --"
    catalogue.write_remark(title, Remark(title))
    assert catalogue.remark(title).title == title


def test_readers_do_not_wait_for_writers(catalogue: Catalogue) -> None:
    with sqlite3.connect(catalogue.path) as database:
        assert database.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
