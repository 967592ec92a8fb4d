"""The workbench: what is made lands in the library with a note, and reports are kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from app.library import Entry
from app.operations import Operation, Stage
from app.workbench import Ingredient, percent
from app.workshop import Workshop
from tests.app.adapters import write_adapter
from tests.app.fakes import until
from trainer.errors import UserError


@pytest.fixture
def pip(workshop: Workshop) -> Entry:
    write_adapter(workshop.data / "adapters" / "pip.safetensors")
    return workshop.library.find("file:pip.safetensors")


@pytest.fixture
def vex(workshop: Workshop) -> Entry:
    write_adapter(workshop.data / "adapters" / "vex.safetensors")
    return workshop.library.find("file:vex.safetensors")


def ended(workshop: Workshop, id: str) -> Operation:
    def found() -> Operation:
        return next(it for it in workshop.workbench.operations.listing() if it.id == id)

    until(lambda: found().stage.over)
    return found()


def test_a_resized_adapter_is_in_the_library_with_its_error(workshop: Workshop, pip: Entry) -> None:
    done = ended(workshop, workshop.workbench.resize(pip, None, 0.9))
    assert done.stage is Stage.DONE
    made = workshop.library.find("file:pip_ 90 _.safetensors")
    assert made.title == "pip, 90 %"
    assert made.note == done.outcome.message
    assert "loses 0 % in all, at most 20 % in a layer" in made.note


def test_a_mix_says_what_it_is_made_of(workshop: Workshop, pip: Entry, vex: Entry) -> None:
    mix = [Ingredient(pip, 0.5), Ingredient(vex, -1), Ingredient(vex, 0)]
    done = ended(workshop, workshop.workbench.compose(mix, "both", rank=2))
    assert done.outcome.message == "Mixed from 0.5 × pip + -1 × vex: rank 2, it loses 3.4 %."
    assert done.outcome.address == "/library?adapter=file%3Aboth.safetensors"
    exact = ended(workshop, workshop.workbench.compose(mix, "both"))
    assert "the exact sum" in exact.outcome.message
    assert workshop.library.find("file:both-2.safetensors").title == "both"


def test_a_failure_leaves_nothing_behind(workshop: Workshop, pip: Entry) -> None:
    failed = ended(workshop, workshop.workbench.compose([Ingredient(pip)], "fails"))
    assert failed.stage is Stage.FAILED
    assert failed.outcome.message == "fails.safetensors cannot be written: the disk is full."
    assert [entry.title for entry in workshop.library.entries()] == ["pip"]


def test_reports_are_kept_until_the_file_changes(
    workshop: Workshop, pip: Entry, vex: Entry
) -> None:
    bench = workshop.workbench
    assert bench.measured(pip) is None
    ended(workshop, bench.measure(pip))
    measured = bench.measured(pip)
    assert measured is not None
    assert measured["norm"] == 5.0
    ended(workshop, bench.compare((pip, 1.0), (vex, 1.0)))
    compared = bench.compared((pip, 1.0), (vex, 1.0))
    assert compared is not None
    assert compared[0]["words"].startswith("They mix well.")
    assert bench.picture(compared[1]).exists()
    write_adapter(pip.file, name="a longer name than before")
    assert bench.measured(workshop.library.find(pip.ref)) is None


def test_what_makes_no_sense_is_refused(workshop: Workshop, pip: Entry) -> None:
    bench = workshop.workbench
    for rank, energy in ((None, None), (4, 0.5), (0, None), (None, 1.5)):
        with pytest.raises(UserError):
            bench.resize(pip, rank, energy)
    with pytest.raises(UserError, match="no adapter acts"):
        bench.compose([Ingredient(pip, 0)], "nothing")
    with pytest.raises(UserError, match="name"):
        bench.compose([Ingredient(pip)], "  ")
    with pytest.raises(UserError, match="itself"):
        bench.compare((pip, 1.0), (pip, 0.5))


def test_dora_gets_the_base_that_it_names_if_a_page_may_name_it(
    workshop: Workshop, pip: Entry, vex: Entry
) -> None:
    bench = workshop.workbench
    dora = replace(pip.told, roles={"unet.conv_in": {"dora_scale": "x"}})
    elsewhere = replace(dora, header=replace(dora.header, base="/etc"))
    assert bench._base([pip, vex]) == []
    assert bench._base([vex, replace(pip, told=dora)]) == ["--base", "embedded"]
    assert bench._base([replace(pip, told=elsewhere)]) == []
    assert bench._base([replace(pip, told=dora), replace(vex, told=elsewhere)]) == []


def test_shares_in_words() -> None:
    shares = (None, 0.0, 0.00001, 0.00123, 0.034, 0.5, 1.0)
    said = ["0 %", "0 %", "under 0.01 %", "0.12 %", "3.4 %", "50 %", "100 %"]
    assert [percent(share) for share in shares] == said


def test_the_real_command_line_composes_weights_by_part_and_block(
    tmp_path: Path, pip: Entry, workshop: Workshop
) -> None:
    """The arguments are those that the trainer's own parser takes."""
    from app.workbench import _weighed
    from trainer.cli import build
    from trainer.cli_adapters import Weighted, parse_weighted

    mix = [Ingredient(pip, -0.5, 0.25), Ingredient(pip, 1.0, blocks=("unet.up_blocks=0.5",))]
    output = str(tmp_path / "x.safetensors")
    parsed = build().parse_args(["compose", *_weighed(mix), "--json", "--output", output])
    assert [parse_weighted(text) for text in parsed.adapters] == [
        Weighted(pip.file, -0.5, 0.25), Weighted(pip.file)
    ]  # fmt: skip
    assert parsed.block == ["2:unet.up_blocks=0.5"]
    assert str(mix[1]) == "1 × pip (unet.up_blocks=0.5)"
