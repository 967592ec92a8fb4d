"""The preview worker and the cache in front of it, with a worker that draws greys."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from app.previews import Previews, Worker, content_key
from app.workshop import Workshop
from tests.app.adapters import write_adapter
from tests.app.fakes import WORKER
from trainer.errors import RunFailed
from trainer.preview.request import Cancelled, Loading, Progress, Render, Rendered, Strength


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter.safetensors")


def wanted(adapter: Path, strength: float = 1.0, **other: object) -> Render:
    asked = {"prompt": "pip", "base": "embedded", "folder": Path("unused"), **other}
    return Render(id="one", adapters=(Strength(file=adapter, unet=strength),), **asked)


def grey(file: Path) -> int:
    with Image.open(file) as image:
        pixel = image.convert("L").getpixel((0, 0))
    assert isinstance(pixel, int)
    return pixel


def outcome(previews: Previews, request: Render) -> Rendered:
    answers = list(previews.draw(request))
    assert isinstance(answers[-1], Rendered)
    return answers[-1]


def test_strength_changes_the_image_and_a_drawing_comes_back_at_once(
    workshop: Workshop, adapter: Path
) -> None:
    previews = workshop.previews
    answers = list(previews.draw(wanted(adapter, 0.0)))
    assert [type(answer) for answer in answers] == [Loading, Progress, Rendered]
    strong = outcome(previews, wanted(adapter, 1.0))
    assert [type(answer) for answer in previews.draw(wanted(adapter, 0.0))] == [Rendered]
    assert grey(outcome(previews, wanted(adapter, 0.0)).files[0]) == 100
    assert grey(strong.files[0]) == 150


def test_a_strip_has_an_image_for_each_factor(workshop: Workshop, adapter: Path) -> None:
    rendered = outcome(workshop.previews, wanted(adapter, strip=(0.0, 0.5, 1.0)))
    assert [grey(file) for file in rendered.files] == [100, 125, 150]


def test_an_adapter_that_was_trained_further_is_drawn_anew(
    workshop: Workshop, adapter: Path
) -> None:
    before = content_key(wanted(adapter))
    write_adapter(adapter, name="a longer name")
    assert content_key(wanted(adapter)) != before
    assert content_key(wanted(adapter)) == content_key(
        wanted(adapter).model_copy(update={"id": "two", "folder": Path("elsewhere")})
    )


def test_a_refusal_and_a_death_are_told_and_the_next_request_is_served(
    workshop: Workshop, adapter: Path
) -> None:
    with pytest.raises(RunFailed, match="refused"):
        outcome(workshop.previews, wanted(adapter, prompt="refuse this"))
    with pytest.raises(RunFailed, match="dies as it was told"):
        outcome(workshop.previews, wanted(adapter, prompt="die"))
    assert outcome(workshop.previews, wanted(adapter)).files
    assert list(workshop.previews.folder.glob(".*")) == []


def test_a_request_that_is_given_up_before_it_is_asked_is_not_drawn(
    workshop: Workshop, adapter: Path
) -> None:
    previews = workshop.previews
    request = wanted(adapter, 0.75)
    previews.give_up(request.id)
    assert [type(answer) for answer in previews.draw(request)] == [Cancelled]
    other = request.model_copy(update={"id": "two"})
    assert outcome(previews, other).files


def test_a_request_that_is_left_early_does_not_disturb_the_next(
    workshop: Workshop, adapter: Path
) -> None:
    drawing = workshop.previews.draw(wanted(adapter, 0.25))
    next(drawing)
    drawing.close()  # type: ignore[attr-defined]
    next_one = wanted(adapter, 0.75).model_copy(update={"id": "two"})
    assert grey(outcome(workshop.previews, next_one).files[0]) == 138


def test_the_worker_ends_with_the_workshop(tmp_path: Path, adapter: Path) -> None:
    worker = Worker(tmp_path / "log", WORKER)
    list(worker.ask(wanted(adapter, folder=tmp_path / "drawn")))
    process = worker._process
    assert process is not None
    worker.close()
    assert process.poll() == 0


def test_drafts_of_a_killed_server_are_swept(tmp_path: Path) -> None:
    folder = tmp_path / "previews"
    (folder / ".half").mkdir(parents=True)
    Previews(folder, Worker(tmp_path / "log", WORKER))
    assert list(folder.iterdir()) == []
