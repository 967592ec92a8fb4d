"""Datasets: images in, captions that save themselves, and text that stays text."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect

from tests.app.fakes import add_dataset, until
from tests.browser.conftest import NewPage
from tests.browser.hand import unfold
from tests.browser.serving import Server


def caption(page: Page) -> str:
    return page.locator("#caption textarea").input_value()


def make_dataset(page: Page, name: str) -> None:
    expect(page.locator(".tile").first).to_be_visible()  # the page has loaded what it opens with
    page.locator("#new-name input, #new-name textarea").fill(name)
    page.locator("#create").click()
    expect(page.locator("#dataset input")).to_have_value(name)
    expect(page.locator("#grid")).to_contain_text("No images yet")


def drop(page: Page, files: list[Path]) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator("#drop button").first.click()
    chooser.value.set_files(files)


def test_images_are_dropped_captioned_and_there_after_a_reload(
    new_page: NewPage, server: Server, tmp_path: Path
) -> None:
    files = []
    for number in range(3):
        files.append(tmp_path / f"photo {number}.png")
        Image.new("RGB", (80, 80), (90 * number, 60, 120)).save(files[-1])
    page = new_page("/datasets")
    make_dataset(page, "drawn here")
    drop(page, files)
    expect(page.locator("#summary")).to_contain_text("3 images · 3 without caption")
    expect(page.locator("#import-report")).to_contain_text("3")
    expect(page.locator(".tile")).to_have_count(3)

    page.locator(".tile").nth(1).click()
    expect(page.locator("#picture figcaption")).to_have_text("0002.png")
    page.locator("#caption textarea").fill("a green square")
    expect(page.locator("#saved")).to_have_text("Saved")
    page.locator("#next-image").click()
    expect(page.locator("#picture figcaption")).to_have_text("0003.png")
    expect(page.locator("#summary")).to_contain_text("2 without caption")
    page.locator("#caption textarea").fill("a lilac square")
    page.locator("#masthead").click()
    expect(page.locator("#summary")).to_contain_text("1 without caption")

    page.reload()
    expect(page.locator("#picture figcaption")).to_have_text("0003.png")
    expect(page.locator("#caption textarea")).to_have_value("a lilac square")
    folder = server.data / "datasets" / "drawn here"
    assert (folder / "0002.txt").read_text() == "a green square\n"


def test_a_caption_is_saved_while_it_is_being_written(new_page: NewPage, server: Server) -> None:
    page = new_page("/datasets?dataset=pips&image=0004.png")
    expect(page.locator("#caption textarea")).to_have_value("pip the creature, picture 4")
    page.locator("#caption textarea").press_sequentially(" and then some", delay=5)
    file = server.data / "datasets" / "pips" / "0004.txt"
    until(lambda: "picture 4" not in file.read_text() or "and then some" in file.read_text())
    until(lambda: "and then some" in file.read_text())


def test_clicking_another_image_takes_no_caption_along(new_page: NewPage, server: Server) -> None:
    page = new_page("/datasets?dataset=pips")
    expect(page.locator("#picture figcaption")).to_have_text("0001.png")
    page.locator("#caption textarea").fill("the first one")
    page.locator('[data-image="0002.png"]').click()
    expect(page.locator("#caption textarea")).to_have_value("pip the creature, picture 2")
    folder = server.data / "datasets" / "pips"
    until(lambda: (folder / "0001.txt").read_text() == "the first one\n")
    assert (folder / "0002.txt").read_text() == "pip the creature, picture 2\n"


def test_the_filter_shows_what_is_left_to_do(new_page: NewPage) -> None:
    page = new_page("/datasets?dataset=pips")
    expect(page.locator(".tile")).to_have_count(6)
    page.get_by_label("Without caption").check()
    expect(page.locator(".tile")).to_have_count(1)
    expect(page.locator("#picture figcaption")).to_have_text("0006.png")


def test_a_caption_is_text_and_never_markup(new_page: NewPage) -> None:
    page = new_page("/datasets?dataset=pips&image=0005.png")
    hostile = "<img src=x onerror=window.hacked=1> ${1+1} {{value}} </textarea>"
    expect(page.locator("#picture figcaption")).to_have_text("0005.png")
    page.locator("#caption textarea").fill(hostile)
    page.locator("#next-image").click()
    expect(page.locator("#picture figcaption")).to_have_text("0006.png")
    page.locator("#previous-image").click()
    expect(page.locator("#caption textarea")).to_have_value(hostile)
    expect(page.locator('[data-image="0005.png"]')).to_have_attribute("title", hostile)
    assert page.evaluate("window.hacked") is None


def test_a_bad_name_is_refused_in_words(new_page: NewPage) -> None:
    page = new_page("/datasets")
    expect(page.locator(".tile").first).to_be_visible()
    page.locator("#new-name input, #new-name textarea").fill("../outside")
    page.locator("#create").click()
    expect(page.locator(".toast-body")).to_contain_text("no name for a dataset")


def test_an_image_is_removed(new_page: NewPage, server: Server, tmp_path: Path) -> None:
    page = new_page("/datasets")
    make_dataset(page, "short lived")
    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "one.png")
    drop(page, [tmp_path / "one.png"])
    expect(page.locator("#picture figcaption")).to_have_text("0001.png")
    page.locator("#remove").click()
    expect(page.locator("#grid")).to_contain_text("No images yet")
    assert not (server.data / "datasets" / "short lived" / "0001.png").exists()


def test_all_captions_are_changed_at_once_and_back(new_page: NewPage, server: Server) -> None:
    folder = add_dataset(server.data / "datasets", "bulk")
    page = new_page("/datasets?dataset=bulk")
    expect(page.locator("#picture figcaption")).to_have_text("0001.png")
    unfold(page, "#bulk")
    page.locator("#bulk-find input, #bulk-find textarea").fill("creature")
    page.locator("#bulk-replace input, #bulk-replace textarea").fill("monster")
    page.locator("#bulk-do-replace").click()
    expect(page.locator("#bulk-told")).to_have_text("2 captions changed.")
    expect(page.locator("#caption textarea")).to_have_value("pip the monster, picture 1")
    page.locator("#bulk-word input, #bulk-word textarea").fill("zkv")
    page.locator("#bulk-add").click()
    expect(page.locator("#caption textarea")).to_have_value("zkv, pip the monster, picture 1")
    expect(page.locator("#summary")).not_to_contain_text("without caption")
    page.locator("#bulk-undo").click()
    expect(page.locator("#bulk-told")).to_have_text("3 captions as before.")
    assert (folder / "0001.txt").read_text() == "pip the monster, picture 1\n"


def test_a_dataset_is_looked_over(new_page: NewPage) -> None:
    page = new_page("/datasets?dataset=pips")
    expect(page.locator(".tile")).to_have_count(6)
    unfold(page, "#look-over")
    page.locator("#check-dataset").click()
    findings = page.locator("#dataset-findings")
    expect(findings).to_contain_text("without a caption")
    expect(findings).to_contain_text("6 images, 100.0% of steps")
    findings.get_by_role("link", name="0006.png").first.click()
    expect(page.locator("#picture figcaption")).to_have_text("0006.png")
