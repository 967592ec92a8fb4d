"""The preview worker as a real process: requests in, images out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from trainer.preview.recipe import read_recipe
from trainer.preview.request import ANSWER, Cancel, Cancelled, Progress, Refused, Render, Rendered

Ask = Callable[..., object]


@pytest.fixture
def worker() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer", "worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    yield process
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(30) == 0  # it ends with its input


def _send(worker: subprocess.Popen[str], *lines: str) -> None:
    assert worker.stdin is not None
    worker.stdin.write("".join(line + "\n" for line in lines))
    worker.stdin.flush()


def _answer(worker: subprocess.Popen[str]) -> object:
    assert worker.stdout is not None
    return ANSWER.validate_json(worker.stdout.readline())


def _last(worker: subprocess.Popen[str]) -> object:
    while isinstance(answer := _answer(worker), Rendered | Refused | Cancelled) is False:
        assert answer
    return answer


def _render(base: Path, folder: Path, **changes: object) -> str:
    wanted = {"id": "1", "base": str(base), "prompt": "a cat", "steps": 3, "folder": folder}
    wanted |= {"width": 64, "height": 64}
    return Render.model_validate(wanted | changes).model_dump_json()


def test_it_draws_with_progress_and_refuses_in_words(
    worker: subprocess.Popen[str], tiny_base: Path, tmp_path: Path
) -> None:
    _send(worker, _render(tiny_base, tmp_path / "a", strip=(0.0, 1.0)))
    assert _answer(worker).type == "loading"  # type: ignore[attr-defined]
    assert [_answer(worker) for _ in range(3)] == [
        Progress(id="1", done=done, total=3) for done in (1, 2, 3)
    ]
    rendered = _answer(worker)
    assert isinstance(rendered, Rendered)
    assert [file.name for file in rendered.files] == ["00.png", "01.png"]
    assert Image.open(rendered.files[0]).size == (64, 64)
    recipe = read_recipe(rendered.files[1])
    assert (recipe.image, recipe.drawings[0].strip) == (1, (0.0, 1.0))

    _send(worker, _render(tiny_base, tmp_path / "private", id="p", private=True))
    rendered = _last(worker)
    assert isinstance(rendered, Rendered)
    assert not Image.open(rendered.files[0]).info

    missing = {"file": str(tmp_path / "no.safetensors")}
    _send(worker, _render(tiny_base, tmp_path / "b", id="2", adapters=(missing,)))
    refused = _last(worker)
    assert isinstance(refused, Refused)
    assert "no.safetensors" in refused.message

    _send(worker, "this is not a request")
    refused = _last(worker)
    assert isinstance(refused, Refused)
    assert refused.id == ""

    _send(worker, _render(tmp_path / "nowhere", tmp_path / "c", id="3"))
    refused = _last(worker)
    assert isinstance(refused, Refused)
    assert refused.message


def test_a_cancelled_request_is_given_up_and_the_next_is_done(
    worker: subprocess.Popen[str], tiny_base: Path, tmp_path: Path
) -> None:
    _send(
        worker,
        _render(tiny_base, tmp_path / "long", id="long", steps=900),
        Cancel(id="long").model_dump_json(),
        _render(tiny_base, tmp_path / "next", id="next"),
    )
    assert _last(worker) == Cancelled(id="long")
    rendered = _last(worker)
    assert isinstance(rendered, Rendered)
    assert rendered.id == "next"
    assert not (tmp_path / "long").exists()
