"""What a hand does on a page that takes more than one call."""

from __future__ import annotations

from playwright.sync_api import Page, expect

# Two frames, and then nothing left to do.
_SETTLED = """() => new Promise((done) => requestAnimationFrame(() =>
  requestAnimationFrame(() => requestIdleCallback(() => done()))))"""


def box(page: Page, name: str) -> str:
    """Selector of the text box of a setting."""
    id = f"#set-{name.replace('.', '-').replace('_', '-')}"
    return f"{id} textarea, {id} input"


def unfold(page: Page, section: str) -> None:
    """Opens the folded section with this selector, so that its boxes can be written to.

    Gradio makes what is in a section when it is first opened, and hands it what the server had sent
    before some milliseconds later: too fast for a person, but a script's word would be lost to it.
    """
    page.locator(f"{section} > .label-wrap").click()
    expect(page.locator(f"{section} :is(input, textarea, button:not(.label-wrap))").first
           ).to_be_visible()  # fmt: skip
    page.evaluate(_SETTLED)
