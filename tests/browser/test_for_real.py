"""The main job without fakes: the real trainer and worker on the base that ships."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import NewPage
from tests.browser.hand import box, unfold
from tests.browser.serving import Server
from tests.browser.test_train import badge

MILLISECONDS = 1000
_PATIENCE = 900 * MILLISECONDS


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_newcomer_trains_a_sample_and_moves_the_slider(new_page: NewPage, tmp_path: Path) -> None:
    real = Server(tmp_path / "data", real=True)
    real.data.mkdir()
    real.start()
    try:
        page = new_page("/", base=real.address)
        page.locator("#try-character").click()
        expect(page.locator("#check")).to_contain_text("12")
        page.locator(box(page, "training.steps")).fill("4")
        page.locator("#main-action").click()
        page.wait_for_url("**/train?run=*")
        expect(page.locator("#run-head .badge")).to_have_text("finished", timeout=_PATIENCE)
        badge(page, "finished")
        page.get_by_role("link", name="See it at different strengths").click()
        expect(page.locator("#image img")).to_be_visible(timeout=_PATIENCE)
        strong = page.request.get(page.locator("#image img").evaluate("i => i.src")).body()
        page.locator("#strength input[type=number]").fill("0")
        page.locator("#strength input[type=number]").press("Enter")
        without = page.locator('#image img[data-strength="0"]')
        expect(without).to_be_visible(timeout=_PATIENCE)
        assert page.request.get(without.evaluate("i => i.src")).body() != strong

        unfold(page, "#saving")
        page.locator("#mix-name input, #mix-name textarea").fill("smaller")
        page.locator("#strength input[type=number]").fill("0.5")
        page.locator("#strength input[type=number]").press("Enter")
        page.locator("#mix-rank input, #mix-rank textarea").fill("2")
        page.locator("#save-mix").click()
        kept = page.locator(".operation.good")
        expect(kept).to_contain_text("rank 2, it loses", timeout=_PATIENCE)
        kept.get_by_role("link", name="Open").click()
        expect(page.locator("#facts")).to_contain_text("SD 1.x")
        page.locator("#measure").click()
        expect(page.locator("#norms")).to_contain_text("unet.", timeout=_PATIENCE)
    finally:
        real.stop()
