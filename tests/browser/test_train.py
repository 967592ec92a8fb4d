"""Training from the page: start, watch, reload, restart the server, stop, resume, fail, delete."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.app.fakes import add_dataset, new_run, until
from tests.browser.conftest import PHONE, NewPage
from tests.browser.serving import Server
from trainer.run import Run, State


def box(page: Page, name: str) -> str:
    """Selector of the text box of a setting."""
    id = f"#set-{name.replace('.', '-').replace('_', '-')}"
    return f"{id} textarea, {id} input"


def start(page: Page, name: str = "works", steps: int = 60) -> str:
    """Starts a run from a filled form and returns its id. The fake trainer goes by its name."""
    expect(page.locator("#check")).to_contain_text("Images")
    page.locator(box(page, "output.name")).fill(name)
    page.locator(box(page, "training.steps")).fill(str(steps))
    page.locator("#main-action").click()
    page.wait_for_url("**/train?run=*")
    return page.url.partition("run=")[2]


def badge(page: Page, word: str) -> None:
    expect(page.locator("#run-head .badge")).to_have_text(word)


def run_of(server: Server, id: str) -> Run:
    return Run(server.data / "runs" / id)


def test_a_run_is_started_watched_and_finished(new_page: NewPage, server: Server) -> None:
    page = new_page("/train?dataset=pips&preset=embedded-character")
    expect(page.locator("#findings")).to_contain_text("without a caption")
    page.locator(box(page, "samples.prompts")).fill("pip at night\npip by day")
    id = start(page, "waits", steps=200)
    badge(page, "running")
    expect(page.locator("#run-head")).to_contain_text(re.compile(r"\d+ of 200 steps · \d+ s left"))
    expect(page.locator("#chart svg .fair")).to_be_visible()
    expect(page.locator("#samples .prompt-row")).to_have_count(2)
    page.locator("#save-now").click()
    badge(page, "finished")
    expect(page.locator("#run-head")).to_contain_text("lower loss than the base on images held out")
    points = page.locator("#chart polyline.fair").get_attribute("points") or ""
    assert 50 < len(points.split()) <= 400
    page.locator("#samples img").first.evaluate("image => image.decode()")
    settings = run_of(server, id).settings()
    assert settings.dataset.folder == server.data / "datasets" / "pips"
    assert settings.samples.prompts == ("pip at night", "pip by day")
    expect(page.get_by_role("link", name="Download the adapter")).to_be_visible()


def test_a_reload_and_a_second_browser_see_the_same_run(new_page: NewPage, server: Server) -> None:
    page = new_page("/train?dataset=pips")
    start(page, "lasts")
    badge(page, "running")
    page.reload()
    badge(page, "running")
    other = new_page("/", width=PHONE)
    expect(other.locator("#job-strip")).to_contain_text("lasts")
    other.locator("#job-strip a").click()
    badge(other, "running")
    other.locator("#stop").click()
    badge(other, "stopped")
    badge(page, "stopped")


def test_a_stopped_run_is_resumed(new_page: NewPage, server: Server) -> None:
    page = new_page("/train?dataset=pips")
    id = start(page, "lasts")
    badge(page, "running")
    page.locator("#save-now").click()
    until(lambda: len(list(run_of(server, id).checkpoints.glob("*"))) > 0)
    page.locator("#stop").click()
    badge(page, "stopped")
    page.locator("#resume").click()
    badge(page, "running")
    until(lambda: run_of(server, id).status().attempt == 2)
    page.locator("#stop").click()
    badge(page, "stopped")


def test_a_second_run_waits_for_the_first(new_page: NewPage, server: Server) -> None:
    page = new_page("/train?dataset=pips")
    first = start(page, "lasts")
    badge(page, "running")
    page.goto(f"{server.address}/train?dataset=pips")
    second = start(page)
    badge(page, "queued")
    expect(page.locator("#job-strip")).to_contain_text("+1 waiting")
    run_of(server, first).request("stop")
    badge(page, "finished")
    assert run_of(server, first).status().state is State.STOPPED
    assert run_of(server, second).status().state is State.FINISHED


def test_a_failed_run_says_why_and_what_to_do(new_page: NewPage, server: Server) -> None:
    page = new_page("/train?dataset=pips")
    start(page, "fails")
    badge(page, "failed")
    expect(page.locator(".trouble")).to_contain_text("no memory left")
    expect(page.locator(".trouble")).to_contain_text("Set training.batch_size to 2")
    expect(page.locator("#log pre")).to_contain_text("CUDA out of memory")
    page.get_by_role("link", name="Start again with other settings").click()
    expect(page.locator(box(page, "output.name"))).to_have_value("fails")
    expect(page.locator("#dataset input")).to_have_value("pips")


def test_a_trainer_that_cannot_begin_is_shown_with_its_log(new_page: NewPage) -> None:
    page = new_page("/train?dataset=pips")
    start(page, "mute")
    badge(page, "did not start")
    expect(page.locator("#log pre")).to_contain_text("No module named 'torch'")


def test_a_run_whose_trainer_was_killed_can_be_resumed(new_page: NewPage, server: Server) -> None:
    page = new_page("/train?dataset=pips")
    start(page, "crashes")
    badge(page, "interrupted")
    expect(page.locator(".trouble")).to_contain_text("Resume goes on")
    expect(page.locator("#resume")).to_be_visible()


def test_wrong_settings_return_to_their_boxes(new_page: NewPage, server: Server) -> None:
    page = new_page("/train?dataset=pips")
    expect(page.locator("#check")).to_contain_text("Images")
    page.locator("#advanced .label-wrap").click()
    page.locator(box(page, "adapter.rank")).fill("0")
    page.locator(box(page, "optimizer.learning_rate")).fill("fast")
    page.locator("#main-action").click()
    expect(page.locator("#set-adapter-rank")).to_contain_text("greater than or equal to 1")
    expect(page.locator("#set-optimizer-learning-rate")).to_contain_text("valid number")
    expect(page.locator("#problems")).to_contain_text("need another look")
    page.locator(box(page, "adapter.rank")).fill("4")
    page.locator(box(page, "optimizer.learning_rate")).fill("1e-4")
    page.locator(box(page, "output.name")).fill("works")
    page.locator("#main-action").click()
    page.wait_for_url("**/train?run=*")
    settings = run_of(server, page.url.partition("run=")[2]).settings()
    assert (settings.adapter.rank, settings.optimizer.learning_rate) == (4, 1e-4)


def test_a_preset_fills_the_form_and_leaves_the_name_alone(new_page: NewPage) -> None:
    page = new_page("/train?dataset=pips")
    expect(page.locator("#check")).to_contain_text("Images")
    page.locator(box(page, "output.name")).fill("mine")
    page.get_by_label("SDXL").check()
    page.get_by_label("A style").check()
    expect(page.locator(box(page, "training.steps"))).to_have_value("2000")
    expect(page.locator(box(page, "output.name"))).to_have_value("mine")


def test_a_page_names_no_path_of_the_server(new_page: NewPage) -> None:
    page = new_page("/train?dataset=pips")
    expect(page.locator("#check")).to_contain_text("Images")
    page.locator("#advanced .label-wrap").click()
    page.locator(box(page, "base.model")).fill("/etc/passwd")
    page.locator("#main-action").click()
    expect(page.locator("#problems")).to_contain_text("not a base that the web app may open")


def test_a_run_is_deleted_after_a_question(new_page: NewPage, server: Server) -> None:
    id = new_run(server.data / "runs", "unwanted")
    page = new_page(f"/train?run={id}")
    badge(page, "draft")
    page.locator("#remove-run").click()
    page.locator("#delete-run").click()
    page.wait_for_url("**/train")
    assert not run_of(server, id).path.exists()


def test_training_goes_on_while_the_server_is_restarted(new_page: NewPage, tmp_path: Path) -> None:
    own = Server(tmp_path / "data")
    add_dataset(own.data / "datasets", "pips")
    own.start()
    try:
        page = new_page("/train?dataset=pips", base=own.address)
        id = start(page, "lasts")
        badge(page, "running")
        own.stop()
        before = run_of(own, id).status()
        assert before.state is State.RUNNING
        own.start()
        page.goto(f"{own.address}/train?run={id}")
        badge(page, "running")
        assert run_of(own, id).status().pid == before.pid
        page.locator("#stop").click()
        badge(page, "stopped")
    finally:
        own.stop()
