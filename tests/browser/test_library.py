"""Library: import, rename, mark, delete, and what can be made of an adapter; a name is text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.app.adapters import write_adapter
from tests.browser.conftest import PHONE, NewPage
from tests.browser.hand import unfold
from tests.browser.serving import Server


@pytest.fixture
def adapters(server: Server) -> Iterator[None]:
    """Two adapters; afterwards the library is empty again."""
    folder = server.data / "adapters"
    for name in ("mira", "sketch"):
        write_adapter(folder / f"{name}.safetensors", name)
    yield
    for file in folder.glob("*.safetensors"):
        file.unlink()


def bring(page: Page, *files: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator("#import").click()
    chooser.value.set_files(files)


def card(page: Page, title: str) -> Locator:
    return page.locator(".card").filter(has=page.get_by_role("heading", name=title, exact=True))


def opened(new_page: NewPage, name: str, **how: int) -> Page:
    page = new_page(f"/library?adapter=file:{name}.safetensors", **how)
    expect(page.locator("#facts")).to_contain_text("SD 1.x")
    return page


def test_an_adapter_is_imported_renamed_marked_and_deleted(
    new_page: NewPage, server: Server, tmp_path: Path
) -> None:
    page = new_page("/library")
    expect(page.locator("#cards")).not_to_be_empty()
    bring(page, write_adapter(tmp_path / "brought along.safetensors", trigger="brt"))
    mine = card(page, "brought along")
    expect(mine).to_contain_text("brt")
    expect(mine).to_contain_text("rank 2")
    expect(page.locator("#import-report")).to_contain_text("LoRA of rank 2 for SD 1.x, trigger brt")

    mine.get_by_role("button", name="Favourite").click()
    expect(mine.get_by_role("button")).to_have_attribute("aria-pressed", "true")

    mine.get_by_role("heading").get_by_role("link").click()
    expect(page.locator("#facts")).to_contain_text("SD 1.x")
    page.locator("#ask-rename").click()
    name = page.locator("#name input, #name textarea")
    expect(name).to_have_value("brought along")
    name.fill("<b onclick=x>Mira</b>")
    page.locator("#rename").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("<b onclick=x>Mira</b>")

    page.locator("#ask-delete").click()
    page.locator("#keep").click()
    expect(page.locator("#delete")).to_be_hidden()
    page.locator("#ask-delete").click()
    page.locator("#delete").click()
    page.wait_for_url("**/library")
    expect(page.locator("#cards")).not_to_be_empty()
    expect(card(page, "<b onclick=x>Mira</b>")).to_have_count(0)
    assert not (server.data / "adapters" / "brought along.safetensors").exists()


def test_files_that_are_no_adapters_are_named(new_page: NewPage, tmp_path: Path) -> None:
    page = new_page("/library")
    expect(page.locator("#cards")).not_to_be_empty()
    (tmp_path / "broken.safetensors").write_bytes(b"not one")
    (tmp_path / "pickled.safetensors").write_bytes(b"\x80\x04\x95pickled code")
    bring(page, tmp_path / "broken.safetensors", tmp_path / "pickled.safetensors")
    told = page.locator("#import-report .bad li")
    expect(told).to_have_count(2)
    expect(told.first).to_contain_text("broken.safetensors")
    assert str(tmp_path) not in page.locator("#import-report").inner_text()
    assert "uploads" not in page.locator("#import-report").inner_text()


@pytest.mark.usefixtures("adapters")
def test_a_note_is_kept_and_found(new_page: NewPage) -> None:
    page = opened(new_page, "mira")
    page.locator("#note textarea").fill("good at 0.7")
    expect(page.locator("#note-saved")).to_have_text("Saved")
    page.get_by_role("link", name="← Library").click()
    expect(card(page, "mira").locator(".note")).to_have_text("good at 0.7")


@pytest.mark.usefixtures("adapters")
def test_an_adapter_is_measured_resized_and_converted(new_page: NewPage) -> None:
    page = opened(new_page, "mira")
    page.locator("#measure").click()
    expect(page.locator("#norms")).to_contain_text("64 %")  # 4² of 5²
    expect(page.locator("#measure")).to_be_hidden()

    unfold(page, "#resize-tool")
    page.locator("#new-rank input, #new-rank textarea").fill("1")
    page.locator("#resize").click()
    made = page.locator(".operation.good", has_text="Resize mira to rank 1")
    expect(made).to_contain_text("loses 0 % in all")

    unfold(page, "#convert-tool")
    page.locator("#convert").click()
    expect(page.locator(".operation.good", has_text="diffusers keys")).to_be_visible()
    made.get_by_role("link", name="Open").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("mira, rank 1")
    note = "Resized from mira to rank 2: it loses 0 % in all, at most 20 % in a layer."
    expect(page.locator("#note textarea")).to_have_value(note)
    page.locator(".operation button").first.click()
    expect(page.locator(".operation", has_text="diffusers keys")).to_have_count(0)


@pytest.mark.usefixtures("adapters")
def test_two_adapters_are_compared_and_the_report_has_an_address(new_page: NewPage) -> None:
    page = opened(new_page, "mira")
    unfold(page, "#compare-tool")
    page.locator("#other input").click()
    page.get_by_role("option", name="sketch").click()
    page.locator("#compare").click()
    expect(page.locator("#comparison")).to_contain_text("They mix well.")
    picture = page.locator("#comparison img")
    assert picture.evaluate("async image => { await image.decode(); return image.naturalWidth; }")
    page.locator(".operation.good", has_text="Compare mira").get_by_role("link").click()
    page.wait_for_url("**with=*")
    expect(page.locator("#comparison")).to_contain_text("They mix well.")


@pytest.mark.usefixtures("adapters")
def test_the_view_of_an_adapter_fits_a_phone(new_page: NewPage) -> None:
    page = opened(new_page, "mira", width=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE


def test_an_adapter_that_is_gone_is_said_to_be(new_page: NewPage) -> None:
    page = new_page("/library?adapter=file:../secret")
    expect(page.locator("#adapter-head")).to_contain_text("There is no such adapter")
