"""Whole runs with every kind of adapter and every setting of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.training import runs
from tests.trainer.training.runs import NewRun, same, tensors
from trainer import events
from trainer.adapter.adapter import load
from trainer.adapter.kinds import KINDS, DoRA
from trainer.errors import AdapterError, UserError
from trainer.run import Run, State
from trainer.training.attempt import attempt, check

EVERYTHING: dict[str, Any] = {
    "adapter__targets": "linear-conv",
    "adapter__rank_dropout": 0.3,
    "adapter__module_dropout": 0.2,
    "adapter__text_encoder_stop": 2,
    "training__steps": 4,
    "adapter__text_encoder_rank": 1,
    "adapter__block_ranks": ("unet.mid_block=3", "unet.up_blocks=0"),
    "adapter__max_norm": 0.5,
    "adapter__ema_decay": 0.9,
    "optimizer__block_rates": ("unet.down_blocks=0.5",),
    "optimizer__lora_plus_ratio": 4,
    "dataset__class_prompt": "a thing",  # regularisation images
    "dataset__class_images": 2,
}
# Saved, measured and drawn after every step instead of after every second or third.
OFTEN = {
    "training__checkpoint_every_steps": 1,
    "validation__every_steps": 1,
    "samples__every_steps": 1,
}


@pytest.fixture
def new_run(small_base: Path, photos: Path, tmp_path: Path) -> NewRun:
    def make(name: str = "run", **changes: Any) -> Run:
        return runs.new_run(tmp_path / name, small_base, photos, **changes)

    return make


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "full"])
def test_every_kind_resumes_bit_exactly_with_everything_in_play(new_run: NewRun, kind: str) -> None:
    wanted = EVERYTHING | {"adapter__kind": kind}
    if kind in ("lora", "dora"):
        wanted |= {"adapter__dropout": 0.2}
    whole, parted = new_run("whole", **wanted), new_run("parted", **wanted, **OFTEN)
    assert attempt(whole) is State.FINISHED  # the self test has read the file back
    for _ in range(2):
        parted.request("stop")
        assert attempt(parted) is State.STOPPED  # after one step
    assert attempt(parted) is State.FINISHED
    assert same(whole, parted)
    loaded = load(whole.adapter_file)
    assert not loaded.unused
    assert {type(layer) for layer in loaded.layers.values()} == {
        type(loaded.layers["unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"])
    }
    assert not any(path.startswith("unet.up_blocks") for path in loaded.layers)


def test_a_stopped_text_encoder_stays_as_it_is(new_run: NewRun) -> None:
    adapters = {}
    for stop in (2, 0.34, 4):
        run = new_run(f"stop-{stop}", adapter__text_encoder_stop=stop)
        attempt(run)
        adapters[stop] = tensors(run)
    text = [key for key in adapters[2] if key.startswith("lora_te") and "lora_up" in key]
    assert all(torch.equal(adapters[2][key], adapters[0.34][key]) for key in adapters[2])
    assert any(adapters[2][key].any() for key in text)
    assert any(not torch.equal(adapters[2][key], adapters[4][key]) for key in text)


def test_a_text_encoder_that_has_stopped_stays_so_when_steps_are_added(new_run: NewRun) -> None:
    from trainer.cli_train import change_settings

    run = new_run(adapter__text_encoder_stop=0.5, training__steps=4)
    attempt(run)
    before = tensors(run)
    change_settings(run, {"training.steps": 12})
    assert run.settings().adapter.text_encoder_stop == 2
    attempt(run)
    moved = {key for key, value in tensors(run).items() if not torch.equal(value, before[key])}
    assert moved and not any(key.startswith("lora_te") for key in moved)

    ended = new_run("ended", adapter__text_encoder_stop=0.9, training__steps=1)
    attempt(ended)
    change_settings(ended, {"training.steps": 2})
    assert ended.settings().adapter.text_encoder_stop == 0.9


def test_dropout_changes_what_is_learned_and_nothing_else(new_run: NewRun) -> None:
    plain, dropped = new_run("plain"), new_run("dropped", adapter__rank_dropout=0.5)
    attempt(plain)
    attempt(dropped)
    assert not same(plain, dropped)
    first = [
        next(e for e in run.read_events()[0] if isinstance(e, events.Validated))
        for run in (plain, dropped)
    ]
    assert first[0].training == first[1].training


def test_a_batch_in_parts_drops_what_the_whole_does(
    new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.training.prepare import Pace

    dropouts = {"adapter__rank_dropout": 0.4, "adapter__dropout": 0.2}
    whole, parts = new_run("whole", **dropouts), new_run("parts", **dropouts)
    attempt(whole)
    monkeypatch.setattr(
        Pace, "__init__", lambda self: vars(self).update(pieces=2, recompute=True, rate=1.0)
    )
    attempt(parts)
    for key, tensor in tensors(whole).items():
        torch.testing.assert_close(tensors(parts)[key], tensor, rtol=2e-2, atol=2e-4)


@pytest.mark.parametrize("kind", ["dora", "loha", "lokr"])
def test_going_on_from_an_adapter_of_the_same_kind(new_run: NewRun, kind: str) -> None:
    first = new_run("first", adapter__kind=kind)
    attempt(first)
    again = new_run("again", adapter__kind=kind, adapter__alpha=1,
                    adapter__start_from=first.adapter_file)  # fmt: skip
    attempt(again)
    begun = next(e for e in again.read_events()[0] if isinstance(e, events.Validated))
    ended = [e for e in first.read_events()[0] if isinstance(e, events.Validated)][-1]
    assert begun.held_out == pytest.approx(ended.held_out, rel=1e-4)
    other = new_run("other", adapter__kind="dora" if kind == "lokr" else "lokr",
                    adapter__start_from=first.adapter_file)  # fmt: skip
    with pytest.raises(AdapterError, match="it has another kind at"):
        attempt(other)


def test_a_frozen_block_stays_zero(new_run: NewRun) -> None:
    run = new_run(optimizer__block_rates=("unet=0", "unet.up_blocks=1"))
    attempt(run)
    moved = {key: bool(t.any()) for key, t in tensors(run).items() if "lora_up" in key}
    assert all(m == ("up_blocks" in key) for key, m in moved.items() if key.startswith("lora_unet"))


def test_names_that_match_nothing_stop_a_run_before_it_begins(new_run: NewRun) -> None:
    run = new_run(adapter__layers=("unet.*.attn2.to_w",))
    for begin in (attempt, lambda run: check(run.settings())):
        with pytest.raises(
            UserError, match=r"'unet.\*.attn2.to_w' matches no layer. Is it .*attn2.to_"
        ):
            begin(run)
    rates = new_run("rates", optimizer__block_rates=("unet.nowhere=2",))
    with pytest.raises(UserError, match=r"no layer's path starts with 'unet.nowhere'"):
        check(rates.settings())
    start = new_run("start", adapter__start_from=run.path / "settings.json")
    with pytest.raises(AdapterError, match=r"settings\.json"):
        attempt(start)
    assert not any(isinstance(event, events.Preparing) for event in start.read_events()[0])


def test_text_encoders_without_layers_to_train_are_frozen(new_run: NewRun) -> None:
    named = new_run("named", adapter__layers=("unet",))
    frozen = new_run("frozen", adapter__layers=("unet",), adapter__text_encoder=False)
    for run in (named, frozen):
        attempt(run)
        said = [e.stage for e in run.read_events()[0] if isinstance(e, events.Preparing)]
        assert "Encoding captions" in said
    assert same(named, frozen)


def test_the_report_says_what_is_trained(new_run: NewRun) -> None:
    run = new_run(adapter__kind="dora")
    attempt(run)
    report = json.loads(run.report_file.read_text())
    layers = load(run.adapter_file).layers
    counted = sum(
        layer.direction.down.numel() + layer.direction.up.numel() + layer.magnitude.numel()
        for layer in layers.values()
        if isinstance(layer, DoRA)
    )
    assert report["trained_parameters"] == counted
    assert report["share_of_base"] == counted / report["base_parameters"]
