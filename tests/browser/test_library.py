"""Library: import, rename, mark, delete; and that a name is text."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Locator, Page, expect

from tests.app.adapters import write_adapter
from tests.browser.conftest import NewPage
from tests.browser.serving import Server


def bring(page: Page, *files: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator("#import").click()
    chooser.value.set_files(files)


def card(page: Page, title: str) -> Locator:
    return page.locator(".card").filter(has=page.get_by_role("heading", name=title, exact=True))


def test_an_adapter_is_imported_renamed_marked_and_deleted(
    new_page: NewPage, server: Server, tmp_path: Path
) -> None:
    page = new_page("/library")
    expect(page.locator("#cards")).not_to_be_empty()
    bring(page, write_adapter(tmp_path / "brought along.safetensors", trigger="brt"))
    mine = card(page, "brought along")
    expect(mine).to_contain_text("brt")
    expect(mine).to_contain_text("rank 2")

    mine.locator("[data-wanted=star]").click()
    expect(mine.locator("[data-wanted=star]")).to_have_attribute("aria-pressed", "true")

    mine.locator("[data-wanted=rename]").click()
    page.locator("#name input, #name textarea").fill("<b onclick=x>Mira</b>")
    page.locator("#rename").click()
    renamed = card(page, "<b onclick=x>Mira</b>")
    expect(renamed).to_be_visible()

    renamed.locator("[data-wanted=delete]").click()
    page.locator("#keep").click()
    expect(page.locator("#delete")).to_be_hidden()
    expect(renamed).to_be_visible()
    renamed.locator("[data-wanted=delete]").click()
    page.locator("#delete").click()
    expect(renamed).to_have_count(0)
    assert not (server.data / "adapters" / "brought along.safetensors").exists()


def test_a_file_that_is_no_adapter_is_named(new_page: NewPage, tmp_path: Path) -> None:
    page = new_page("/library")
    expect(page.locator("#cards")).not_to_be_empty()
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not one")
    bring(page, broken)
    expect(page.locator(".toast-body")).to_contain_text("broken.safetensors")
