"""Preview: the slider changes the image, adapters mix, drawings come back, and mixes are kept."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.app.adapters import write_adapter
from tests.app.fakes import until
from tests.browser.conftest import PHONE, NewPage
from tests.browser.hand import unfold
from tests.browser.serving import Server


@pytest.fixture(autouse=True)
def adapters(server: Server) -> Iterator[None]:
    """Two adapter files in the library."""
    files = [server.data / "adapters" / f"{name}.safetensors" for name in ("pip", "vex")]
    for file in files:
        write_adapter(file, file.stem)
    yield
    for file in (server.data / "adapters").iterdir():
        file.unlink(missing_ok=True)


@pytest.fixture
def mixed(new_page: NewPage) -> Page:
    """The preview page with two adapters at 0.7 each."""
    page = new_page("/preview?adapter=file:pip.safetensors&with=file:vex.safetensors")
    drawn(page, "0.7 + 0.7")
    return page


@pytest.fixture
def preview(new_page: NewPage) -> Page:
    """The preview page with its first image drawn."""
    page = new_page("/preview?adapter=file:pip.safetensors")
    drawn(page, "1")
    return page


def drawn(page: Page, strengths: str) -> None:
    expect(page.locator("#image img")).to_have_attribute("data-strength", strengths)


def used(server: Server, field: str) -> list[Any]:
    """A field of all adapters in all pictures that have been drawn."""
    files = (server.data / "previews").glob("[!.]*/request.json")
    return [it[field] for file in files for it in json.loads(file.read_text())["adapters"]]


def grey(page: Page, selector: str = "#image img") -> int:
    """Brightness of an image on the page, by the bytes that the browser got."""
    address = page.locator(selector).first.evaluate("image => image.src")
    content = page.request.get(address).body()
    pixel = Image.open(io.BytesIO(content)).convert("L").getpixel((0, 0))
    assert isinstance(pixel, int)
    return pixel


def test_moving_the_slider_changes_the_image(preview: Page) -> None:
    assert grey(preview) == 150
    slider = preview.locator("#strength input[type=range]")
    slider.focus()
    for _ in range(4):
        slider.press("ArrowLeft")
    drawn(preview, "0.8")
    assert grey(preview) == 140
    preview.locator("#strength input[type=number]").fill("0")
    preview.locator("#strength input[type=number]").press("Enter")
    drawn(preview, "0")
    assert grey(preview) == 100


def test_a_second_adapter_is_added_at_a_weight_of_its_own(preview: Page) -> None:
    preview.locator("#more").click()
    preview.locator("#adapter-2 input").click()
    preview.get_by_role("option", name="vex").click()
    drawn(preview, "1 + 0.5")
    assert grey(preview) == 175
    preview.locator("#strength-2 input[type=number]").fill("-1")
    preview.locator("#strength-2 input[type=number]").press("Enter")
    drawn(preview, "1 + -1")
    assert grey(preview) == 100


def test_the_strip_is_labelled_and_can_be_downloaded(preview: Page) -> None:
    preview.locator("#draw-strip").click()
    labels = preview.locator("#strip figcaption")
    expect(labels).to_have_text(["0", "0.25", "0.5", "0.75", "1"])
    assert grey(preview, "#strip img >> nth=0") == 100
    assert grey(preview, "#strip img >> nth=4") == 150
    with preview.expect_download() as download:
        preview.get_by_role("link", name="Download the strip").click()
    with Image.open(download.value.path()) as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > sheet.height


def test_the_adapter_can_be_downloaded(preview: Page) -> None:
    with preview.expect_download() as download:
        preview.get_by_role("link", name="Download the adapter").click()
    assert download.value.suggested_filename == "pip.safetensors"


def test_a_refusal_is_said_where_the_image_would_be(preview: Page) -> None:
    preview.locator("#prompt textarea").fill("refuse this")
    preview.locator("#main-action").click()
    expect(preview.locator("#progress")).to_contain_text("The prompt was refused. Try another.")


def test_an_adapter_is_switched_off_and_removed(mixed: Page) -> None:
    mixed.locator("#on-2 input").uncheck()
    drawn(mixed, "0.7")
    mixed.locator("#on-2 input").check()
    drawn(mixed, "0.7 + 0.7")
    mixed.locator("#remove-2").click()
    drawn(mixed, "0.7")
    expect(mixed.locator("#adapter-2")).to_be_hidden()
    mixed.locator("#on input").uncheck()
    expect(mixed.locator("#image figcaption")).to_contain_text("no adapter")
    assert grey(mixed) == 100


def test_several_adapters_act_in_another_way(mixed: Page, preview: Page) -> None:
    assert grey(mixed) == 170
    mixed.get_by_label("composite").check()
    expect(mixed.locator("#image img")).not_to_have_attribute("src", "")
    until(lambda: grey(mixed) == 135)
    expect(preview.locator("#mixing")).to_be_hidden()  # where there is only one adapter


def test_the_text_encoder_can_have_a_strength_of_its_own(preview: Page, server: Server) -> None:
    unfold(preview, "#more-about")
    preview.locator("#apart input").check()
    preview.locator("#text-encoder input[type=number]").fill("0.5")
    preview.locator("#text-encoder input[type=number]").press("Enter")
    until(lambda: 0.5 in used(server, "text_encoder"))
    preview.locator("#schedule input").click()
    preview.get_by_role("option", name="fading in").click()
    until(lambda: any(schedule["first"] == 0 for schedule in used(server, "schedule")))


def test_blocks_have_strengths_of_their_own_and_come_back(preview: Page, server: Server) -> None:
    preview.locator("#prompt textarea").fill("pip by block")
    unfold(preview, "#more-about")
    box = preview.locator("#blocks input, #blocks textarea")
    box.fill("unet.up_blocks = 0.5; text_encoder=0")
    box.press("Enter")
    until(lambda: ["unet.up_blocks=0.5", "text_encoder=0"] in used(server, "blocks"))
    tile = preview.locator('#history [title="pip by block"]').first
    expect(tile).to_be_visible()
    preview.reload()
    drawn(preview, "1")
    newest = preview.locator("#history .tile").first
    expect(newest).to_have_attribute("title", "pip")  # is shown anew
    tile.click()
    expect(preview.locator("#prompt textarea")).to_have_value("pip by block")
    unfold(preview, "#more-about")
    expect(box).to_have_value("unet.up_blocks=0.5 text_encoder=0")


def test_a_mask_is_kept_and_drawn_with(preview: Page, server: Server, tmp_path: Path) -> None:
    Image.new("L", (8, 8), 255).save(tmp_path / "mask.png")
    unfold(preview, "#more-about")
    with preview.expect_file_chooser() as chooser:
        preview.locator("#mask button").first.click()
    chooser.value.set_files(tmp_path / "mask.png")
    until(lambda: any(used(server, "mask")))
    (mask,) = {*used(server, "mask")} - {None}
    assert Path(mask).parent == server.data / "inputs"


def test_off_is_compared_with_on(preview: Page) -> None:
    preview.locator("#draw-pair").click()
    pair = preview.locator("#image .versus")
    expect(pair.locator("img")).to_have_count(2)
    assert grey(preview, ".versus img >> nth=0") == 100
    assert grey(preview, ".versus img >> nth=1") == 150
    line = pair.get_by_role("slider")
    line.focus()
    line.press("End")
    assert pair.evaluate("it => it.style.getPropertyValue('--cut')") == "100%"


def test_a_drawing_comes_back_with_its_settings(preview: Page) -> None:
    preview.locator("#prompt textarea").fill("pip under a tree")
    preview.locator("#strength input[type=number]").fill("0.3")
    preview.locator("#strength input[type=number]").press("Enter")
    drawn(preview, "0.3")
    tile = preview.locator('#history [title="pip under a tree"]').first
    expect(tile).to_be_visible()
    preview.reload()
    drawn(preview, "1")
    expect(preview.locator("#history .tile").first).to_have_attribute(
        "title", "pip"
    )  # is shown anew
    tile.click()
    drawn(preview, "0.3")
    expect(preview.locator("#prompt textarea")).to_have_value("pip under a tree")
    expect(preview.locator("#strength input[type=number]")).to_have_value("0.3")


def test_a_drawing_is_given_up(preview: Page) -> None:
    preview.locator("#prompt textarea").fill("take your time")
    preview.locator("#main-action").click()
    preview.get_by_role("button", name="Cancel").click()
    expect(preview.locator("#progress")).to_contain_text("Given up.")
    preview.locator("#prompt textarea").fill("pip at last")
    preview.locator("#main-action").click()
    expect(preview.locator("#image img")).to_have_attribute("alt", "pip at last")


def test_a_new_seed_is_taken_when_asked(preview: Page) -> None:
    expect(preview.locator("#image figcaption")).to_contain_text("seed 0")
    preview.locator("#fresh-seed input").check()
    preview.locator("#main-action").click()
    expect(preview.locator("#image figcaption")).not_to_contain_text("seed 0")
    seed = preview.locator("#seed input").input_value()
    expect(preview.locator("#image figcaption")).to_contain_text(f"seed {seed}")


def test_a_size_that_cannot_be_is_refused_in_words(preview: Page) -> None:
    unfold(preview, "#drawing")
    preview.locator("#width input, #width textarea").fill("100")
    preview.locator("#main-action").click()
    expect(preview.locator(".toast-body")).to_contain_text("multiple of 8")


def test_a_mix_is_kept_as_one_file(mixed: Page) -> None:
    unfold(mixed, "#saving")
    mixed.locator("#mix-name input, #mix-name textarea").fill("pip and vex")
    mixed.locator("#mix-rank input, #mix-rank textarea").fill("4")
    mixed.locator("#save-mix").click()
    expect(mixed.locator(".toast-body")).to_have_count(0)
    kept = mixed.locator(".operation.good", has_text="as pip and vex")
    expect(kept).to_contain_text("Mixed from 0.7 × pip + 0.7 × vex: rank 2, it loses 3.4 %.")
    mixed.locator("#mix-name input, #mix-name textarea").fill("it fails")
    mixed.locator("#save-mix").click()
    expect(mixed.locator(".operation.bad")).to_contain_text("the disk is full")
    kept.get_by_role("link", name="Open").click()
    expect(mixed.get_by_role("heading", level=1)).to_have_text("pip and vex")


def test_what_a_file_cannot_hold_is_told(mixed: Page) -> None:
    unfold(mixed, "#more-about")
    mixed.locator("#schedule input").click()
    mixed.get_by_role("option", name="fading in").click()
    unfold(mixed, "#saving")
    mixed.locator("#mix-name input, #mix-name textarea").fill("all the time")
    mixed.locator("#save-mix").click()
    expect(mixed.locator(".toast-body")).to_contain_text("acts at all steps and everywhere")
    expect(mixed.locator(".operation.good", has_text="as all the time")).to_be_visible()


def test_saving_a_mix_that_takes_long_is_cancelled(mixed: Page) -> None:
    unfold(mixed, "#saving")
    mixed.locator("#mix-name input, #mix-name textarea").fill("slow")
    mixed.locator("#save-mix").click()
    working = mixed.locator(".operation", has_text="as slow")
    expect(working).to_contain_text("working")
    working.get_by_role("button").click()
    expect(working).to_contain_text("cancelled")


def test_a_mix_fits_a_phone(new_page: NewPage) -> None:
    page = new_page("/preview?adapter=file:pip.safetensors&with=file:vex.safetensors", width=PHONE)
    drawn(page, "0.7 + 0.7")
    unfold(page, "#drawing")
    expect(page.locator("#sampler")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE
