"""A served app, a Chromium, and pages that fail their test when a script on them fails."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Playwright, expect, sync_playwright

from tests.app.fakes import add_dataset
from tests.browser.install import find
from tests.browser.serving import Server

DESKTOP, PHONE = 1400, 390
expect.set_options(timeout=20_000)
NewPage = Callable[..., Page]
_FAILED = pytest.StashKey[bool]()


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
    chromium = playwright.chromium.launch(
        executable_path=find(playwright), args=["--disable-dev-shm-usage"]
    )
    yield chromium
    chromium.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


@dataclass
class Shared:
    """The server in use, and the test that used it last."""

    server: Server
    user: pytest.Item


@pytest.fixture(scope="session")
def shared() -> Iterator[list[Shared]]:
    """One at most."""
    one: list[Shared] = []
    yield one
    for it in one:
        it.server.stop()


@pytest.fixture
def server(
    request: pytest.FixtureRequest,
    shared: list[Shared],
    tmp_path_factory: pytest.TempPathFactory,
) -> Server:
    """A server with fakes, shared by the tests that leave it as they found it, or nearly. What a
    failed test has left is nobody's: the next test gets a new server."""
    if shared and shared[0].user.stash.get(_FAILED, False):
        shared.pop().server.stop()
    if not shared:
        data = tmp_path_factory.mktemp("served") / "data"
        add_dataset(data / "datasets", "pips", images=6)
        served = Server(data)
        served.start()
        shared.append(Shared(served, request.node))
    shared[0].user = request.node
    return shared[0].server


@pytest.fixture
def new_page(browser: Browser, server: Server) -> Iterator[NewPage]:
    """Opens pages, each a browser of its own. Afterwards: no script failed, nothing was asked of
    any other machine, and the server met nothing unexpected."""
    faults: list[str] = []
    contexts = []
    said_before = len(server.log())

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
    said = server.log()[said_before:]
    assert "Fault" not in said
    assert "Traceback" not in said


@pytest.fixture
def page(new_page: NewPage) -> Page:
    """A page at Home."""
    return new_page("/")
