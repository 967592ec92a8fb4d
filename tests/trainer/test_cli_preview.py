"""`atelier preview` as people use it: the grammar of adapters, and images drawn again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.adapters import random_adapter
from tests.images import apart
from trainer.adapter.adapter import save
from trainer.adapter.header import Header
from trainer.cli import run
from trainer.cli_drawing import parse_adapter, with_masks
from trainer.errors import UserError
from trainer.model.load import load
from trainer.preview.request import Strength
from trainer.preview.schedule import Schedule
from trainer.settings import Base


@pytest.fixture(scope="module")
def adapter(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = load(Base(model=str(small_base), device="cpu"))
    file = tmp_path_factory.mktemp("adapters") / "x.safetensors"
    save(random_adapter(model.parts), file, Header(name="x", family=model.family))
    return file


def _atelier(*arguments: object) -> None:
    """Runs a command in this process, which spares loading torch again."""
    assert run([str(one) for one in arguments]) == 0


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line with which a command refuses."""

    def of(*arguments: object) -> str:
        capsys.readouterr()
        assert run([str(one) for one in arguments]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1, said
        return said

    return of


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("a.safetensors", Strength(file=Path("a.safetensors"))),
        ("b=c.safetensors", Strength(file=Path("b=c.safetensors"))),
        ("b=c.safetensors=-.5", Strength(file=Path("b=c.safetensors"), unet=-0.5)),
        ("a=0.8:0.3", Strength(file=Path("a"), unet=0.8, text_encoder=0.3)),
        ("a=0.8@0-0.5", Strength(file=Path("a"), unet=0.8, schedule=Schedule(end=0.5))),
        ("a=0..2", Strength(file=Path("a"), unet=2, schedule=Schedule(first=0))),
        ("a=2..-1:0@.25-1", Strength(file=Path("a"), unet=2, text_encoder=0,
                                     schedule=Schedule(begin=0.25, first=1, last=-0.5))),
        ("a=0.7..0.7", Strength(file=Path("a"), unet=0.7)),
    ],
)  # fmt: skip
def test_how_adapters_are_written(text: str, means: Strength) -> None:
    assert parse_adapter(text) == means


@pytest.mark.parametrize(
    ("text", "says"),
    [("a=", "how strongly"), ("a=high", "how strongly"), ("a=nan", "how strongly"),
     ("a=1@0.5", "how strongly"), ("a=5", "less than or equal to 4"),
     ("a=1@0.5-0.5", "not before its end"), ("a=1@0-2", "less than or equal to 1")],
)  # fmt: skip
def test_what_is_not_understood_is_refused(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as refused:
        parse_adapter(text)
    assert "\n" not in str(refused.value)


def test_masks_are_for_the_nth_adapter() -> None:
    first, second = with_masks([parse_adapter("a=1"), parse_adapter("b=1")], ["2:c:d.png"])
    assert (first.mask, second.mask) == (None, Path("c:d.png"))
    for wrong in ("mask.png", "3:mask.png", "0:mask.png", "x:mask.png", "1:"):
        with pytest.raises(UserError, match="does not name one of the 2 adapters"):
            with_masks([first, second], [wrong])


def test_an_image_is_drawn_again_to_the_bit_and_changed(
    small_base: Path, adapter: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    first, again, other = (tmp_path / name for name in ("a.png", "b.png", "c.png"))
    _atelier(
        "preview", "--base", small_base, "--adapter", f"{adapter}=0..1:0.4@0-0.9", "--prompt",
        "a (cat:1.3)", "--steps", 3, "--sampler", "euler-a", "--clip-skip", 2, "--seed", 5,
        "--output", first,
    )  # fmt: skip
    moved = tmp_path / "moved" / "y.safetensors"
    moved.parent.mkdir()
    moved.write_bytes(adapter.read_bytes())
    adapter_elsewhere = adapter.with_name("gone.safetensors")
    adapter.rename(adapter_elsewhere)
    try:
        said = refusal("preview", "--from", first, "--output", again)
        assert "x.safetensors with the hash" in said
        _atelier("preview", "--from", first, "--output", again, "--among", moved.parent)
    finally:
        adapter_elsewhere.rename(adapter)
    assert apart(Image.open(first), Image.open(again)) == 0
    # The one that was drawn again tells the new place, and can be drawn privately with a change.
    _atelier(
        "preview", "--from", again, "--seed", 6, "--sampler", "ddim", "--private", "--output", other
    )
    assert apart(Image.open(first), Image.open(other)) > 5
    assert not Image.open(other).info
    assert "carries no recipe" in refusal("preview", "--from", other, "--output", again)


def test_a_sheet_is_drawn_again_to_the_bit(small_base: Path, adapter: Path, tmp_path: Path) -> None:
    first, again = tmp_path / "a.png", tmp_path / "b.png"
    _atelier(
        "preview", "--base", small_base, "--adapter", f"{adapter}=1", "--prompt", "a cat",
        "--prompt", "a dog", "--strengths", "0,1", "--steps", 2, "--output", first,
    )  # fmt: skip
    _atelier("preview", "--from", first, "--output", again)
    assert apart(Image.open(first), Image.open(again)) == 0


def test_blocks_are_weighed_live_as_in_a_composed_file(
    small_base: Path, adapter: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    other, mix = adapter.with_name("unet only.safetensors"), tmp_path / "mix.safetensors"
    model = load(Base(model=str(small_base), device="cpu"))
    layers = {path: layer for path, layer in random_adapter(model.parts, seed=2).items()
              if path.startswith("unet.")}  # fmt: skip
    save(layers, other, Header(name="y", family=model.family))
    weighed = ("--block", "1:unet.up_blocks=-0.5", "--block", "unet.up_blocks.1.attentions=2",
               "--block", "text_encoder=0.3")  # fmt: skip
    drawn = ("--base", small_base, "--prompt", "a cat", "--steps", 2)
    strip = ("--strengths", "0.5,1")
    live, again, composed, plain = (tmp_path / f"{name}.png" for name in "abcd")
    both = (f"{adapter}=0.8:0.4", f"{other}=0.7")
    used = (text for file in both for text in ("--adapter", file))
    _atelier("preview", *drawn, *used, *weighed, *strip, "--output", live)
    _atelier("compose", *both, *weighed, "--precision", "fp32", "--output", mix)
    _atelier("preview", *drawn, "--adapter", mix, *strip, "--output", composed)
    assert apart(Image.open(live), Image.open(composed)) <= 1
    _atelier("preview", "--from", live, "--output", again)
    assert apart(Image.open(live), Image.open(again)) == 0
    assert "Adapter blocks: " in Image.open(live).info["parameters"]
    _atelier("preview", "--from", live, "--block", "unet=1", "--output", again)
    used = (text for file in both for text in ("--adapter", file))
    _atelier("preview", *drawn, *used, *strip, "--output", plain)
    assert apart(Image.open(again), Image.open(plain)) == 0  # the weights are others now
    assert apart(Image.open(live), Image.open(plain)) > 5
    for rule, says in (
        ("unet.upblocks=1", "no layer's path starts with 'unet.upblocks'"),
        ("unet=much", "'much' is not a number"),
        ("3:unet=1", "of 1"),
        ("1,0,1", "17 or 26"),
    ):
        assert says in refusal("preview", *drawn, "--adapter", adapter, "--block", rule,
                               "--output", plain)  # fmt: skip


def test_flags_that_make_no_sense_together(tmp_path: Path, refusal: Callable[..., str]) -> None:
    output = ("--output", tmp_path / "x.png")
    assert "Give --prompt" in refusal("preview", *output)
    assert "--among is for --from" in refusal("preview", *output, "--prompt", "x", "--among", ".")
    assert "--mask is for an adapter" in refusal(
        "preview", *output, "--prompt", "x", "--mask", "1:x"
    )
    assert "--block is for an adapter" in refusal(
        "preview", *output, "--prompt", "x", "--block", "unet=0"
    )
    assert "clip_skip" in refusal("preview", *output, "--prompt", "x", "--clip-skip", 0)
