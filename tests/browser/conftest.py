"""A served app, a Chromium, and pages that fail their test when a script on them fails."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Playwright, expect, sync_playwright

from tests.app.fakes import add_dataset
from tests.browser.serving import Server

DESKTOP, PHONE = 1400, 390
expect.set_options(timeout=20_000)
NewPage = Callable[..., Page]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as driver:
        yield driver


@pytest.fixture(scope="session")
def browser(playwright: Playwright) -> Iterator[Browser]:
    """The Chromium of the system if there is one, else Playwright's own."""
    installed = shutil.which("chromium") or shutil.which("chromium-browser")
    path = os.environ.get("CHROMIUM", installed)
    chromium = playwright.chromium.launch(executable_path=path, args=["--disable-dev-shm-usage"])
    yield chromium
    chromium.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with fakes, shared by the tests that leave it as they found it, or nearly."""
    data = tmp_path_factory.mktemp("served") / "data"
    add_dataset(data / "datasets", "pips", images=6)
    served = Server(data)
    served.start()
    yield served
    served.stop()


@pytest.fixture
def new_page(browser: Browser, server: Server) -> Iterator[NewPage]:
    """Opens pages, each a browser of its own. Afterwards: no script failed, nothing was asked of
    any other machine, and the server met nothing unexpected."""
    faults: list[str] = []
    contexts = []

    def open_page(address: str = "", width: int = DESKTOP, base: str | None = None) -> Page:
        base = base or server.address
        context = browser.new_context(viewport={"width": width, "height": 900})
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(f"script: {error}"))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((base, "data:", "blob:"))
                else faults.append(f"request: {request.url}")
            ),
        )
        page.goto(base + address)
        expect(page.locator("#masthead .mark")).to_be_visible()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []
    assert "Fault" not in server.log()
    assert "Traceback" not in server.log()


@pytest.fixture
def page(new_page: NewPage) -> Page:
    """A page at Home."""
    return new_page("/")
