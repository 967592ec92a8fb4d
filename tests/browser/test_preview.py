"""Preview: the slider changes the image, adapters mix, and the strip is labelled."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.app.adapters import write_adapter
from tests.browser.conftest import NewPage
from tests.browser.serving import Server


@pytest.fixture(scope="module", autouse=True)
def adapters(server: Server) -> Iterator[None]:
    """Two adapter files in the library."""
    files = [server.data / "adapters" / f"{name}.safetensors" for name in ("pip", "vex")]
    for file in files:
        write_adapter(file, file.stem)
    yield
    for file in files:
        file.unlink(missing_ok=True)


@pytest.fixture
def preview(new_page: NewPage) -> Page:
    """The preview page with its first image drawn."""
    page = new_page("/preview?adapter=file:pip.safetensors")
    drawn(page, "1")
    return page


def drawn(page: Page, strengths: str) -> None:
    expect(page.locator("#image img")).to_have_attribute("data-strength", strengths)


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
