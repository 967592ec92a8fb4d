"""Training from the page: start, watch, reload, restart the server, stop, resume, fail, delete."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.app.fakes import add_dataset, new_run, until
from tests.browser.conftest import PHONE, NewPage
from tests.browser.hand import box, unfold
from tests.browser.serving import Server
from trainer.run import Run, State


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
    expect(page.locator("#run-head .forecast")).to_contain_text("2.0 GB of 16 GB of memory")
    expect(page.locator("#run-head .verdicts")).to_contain_text("Learning")
    page.locator("#save-now").click()
    expect(page.locator(".toast-body")).to_contain_text("saved after the current step")
    badge(page, "finished")
    expect(page.locator("#run-head")).to_contain_text("lower loss than the base on images held out")
    points = page.locator("#chart polyline.fair").get_attribute("points") or ""
    assert 50 < len(points.split()) <= 400
    page.locator("#samples img").first.evaluate("image => image.decode()")
    settings = run_of(server, id).settings()
    assert settings.dataset.folder == server.data / "datasets" / "pips"
    assert settings.samples.prompts == ("pip at night", "pip by day")
    expect(page.get_by_role("link", name="Download the adapter")).to_be_visible()


def test_the_recommended_checkpoint_can_be_used(new_page: NewPage, server: Server) -> None:
    page = new_page("/train?dataset=pips")
    id = start(page, steps=40)
    badge(page, "finished")
    advice = page.locator(".recommended")
    expect(advice).to_contain_text("Use the checkpoint of step 10.")
    expect(advice).to_contain_text("lowest loss on held-out images")
    with page.expect_download() as download:
        advice.get_by_role("link", name="Download step 10").click()
    saved = run_of(server, id).checkpoints / "step-000010.safetensors"
    assert download.value.path().read_bytes() == saved.read_bytes()
    page.locator("#checkpoints .label-wrap").click()
    rows = page.locator(".checkpoints tbody tr")
    expect(rows).to_have_count(4)
    expect(page.locator('.checkpoints tr[data-step="10"]')).to_contain_text("recommended")
    expect(rows.first).to_contain_text("0.")  # the losses measured at it
    advice.get_by_role("link", name="Preview step 10").click()
    page.wait_for_url(f"**/preview?adapter=run:{id}@10")
    link = page.get_by_role("link", name="Download the adapter")
    expect(link).to_have_attribute("href", re.compile("%4010$"))


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
    unfold(page, "#advanced")
    unfold(page, "#section-adapter")
    page.locator(box(page, "adapter.rank")).fill("0")
    unfold(page, "#section-optimizer")
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


def test_another_dataset_serves_as_regularisation_images(new_page: NewPage, server: Server) -> None:
    ordinary = add_dataset(server.data / "datasets", "ordinary")
    page = new_page("/train?dataset=pips&ordinary=ordinary")
    run = run_of(server, start(page, "works"))
    assert run.settings().dataset.class_folder == ordinary

    page.goto(f"{server.address}/train?from={run.path.name}")
    expect(page.locator("#check")).to_contain_text("Images")
    unfold(page, "#advanced")
    expect(page.locator("#ordinary input")).to_have_value("ordinary")
    page.locator("#ordinary input").click()
    page.get_by_role("option", name="pips").click()
    page.locator("#main-action").click()
    expect(page.locator("#problems")).to_contain_text("the dataset itself")


def test_a_page_names_no_path_of_the_server(new_page: NewPage) -> None:
    page = new_page("/train?dataset=pips")
    expect(page.locator("#check")).to_contain_text("Images")
    unfold(page, "#advanced")
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
        page.goto("about:blank")  # which does not reload itself once the server is back
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


def written(page: Page) -> None:
    """Writes a trigger word and a rank, and waits until the page has taken notice."""
    expect(page.locator("#check")).to_contain_text("Images")
    page.locator(box(page, "dataset.trigger")).fill("zkv")
    unfold(page, "#advanced")
    unfold(page, "#section-adapter")
    page.locator(box(page, "adapter.rank")).fill("7")
    page.locator(box(page, "adapter.rank")).blur()
    expect(page.locator("#check .changed")).to_contain_text("Rank: 7 instead of 8")


def test_what_was_written_survives_a_reload_until_it_is_begun_anew(new_page: NewPage) -> None:
    page = new_page("/train?dataset=pips")
    written(page)
    page.reload()
    expect(page.locator("#anew")).to_be_visible()
    expect(page.locator(box(page, "dataset.trigger"))).to_have_value("zkv")
    expect(page.locator("#check .changed")).to_contain_text("Rank: 7 instead of 8")

    page.goto(page.url.partition("?")[0])  # the bare address brings it back too
    expect(page.locator(box(page, "dataset.trigger"))).to_have_value("zkv")
    page.locator("#anew").click()
    expect(page.locator("#anew")).to_be_hidden()
    expect(page.locator(box(page, "dataset.trigger"))).not_to_have_value("zkv")
    page.reload()
    expect(page.locator("#check")).not_to_be_empty()  # with several datasets none is chosen
    expect(page.locator("#anew")).to_be_hidden()


def test_what_was_changed_goes_back_to_the_preset(new_page: NewPage) -> None:
    page = new_page("/train?dataset=pips")
    expect(page.locator("#reset")).to_be_hidden()
    written(page)
    page.locator("#reset").click()
    expect(page.locator("#check .changed")).to_have_count(0)
    expect(page.locator(box(page, "adapter.rank"))).to_have_value("8")
    expect(page.locator(box(page, "dataset.trigger"))).to_have_value("zkv")


def test_a_setting_is_found_by_a_word(new_page: NewPage) -> None:
    page = new_page("/train?dataset=pips")
    expect(page.locator("#check")).to_contain_text("Images")
    unfold(page, "#advanced")
    expect(page.locator("#section-loss")).to_be_visible()
    page.locator("#find-setting input, #find-setting textarea").fill("layers by name")
    expect(page.locator("#set-adapter-layers")).to_contain_text("unet.*.attn2.to_v")  # stars stay
    page.locator("#find-setting input, #find-setting textarea").fill("learning rate")
    expect(page.locator(box(page, "optimizer.learning_rate"))).to_be_visible()
    expect(page.locator("#section-loss")).to_be_hidden()
    expect(page.locator("#set-optimizer-max-gradient-norm")).to_be_hidden()
    page.locator("#find-setting input, #find-setting textarea").fill("")
    expect(page.locator("#section-loss")).to_be_visible()
    expect(page.locator("#set-optimizer-learning-rate")).to_be_hidden()


def test_a_folded_section_opens_for_its_problem(new_page: NewPage) -> None:
    page = new_page("/train?dataset=pips")
    expect(page.locator("#check")).to_contain_text("Images")
    unfold(page, "#advanced")
    unfold(page, "#section-loss")
    page.locator(box(page, "loss.noise_offset")).fill("much")
    page.locator("#section-loss .label-wrap").click()
    expect(page.locator(box(page, "loss.noise_offset"))).to_be_hidden()
    page.locator("#main-action").click()
    expect(page.locator("#set-loss-noise-offset")).to_contain_text("valid number")


def test_a_draft_ends_with_the_start(new_page: NewPage) -> None:
    page = new_page("/train?dataset=pips")
    written(page)
    start(page, "works")
    page.goto(page.url.partition("?")[0])
    expect(page.locator(box(page, "dataset.trigger"))).not_to_have_value("zkv")
    expect(page.locator("#anew")).to_be_hidden()
