"""Captions as text encoders see them: kept while those are frozen, and never stale."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from tests.trainer.adapter import families
from trainer.data.store import DiskStore
from trainer.model.bases import Family
from trainer.model.load import load
from trainer.model.stable_diffusion import BaseModel, Conditioning, StableDiffusion
from trainer.settings import Base
from trainer.training.conditions import Conditions

LONG = " ".join("abcdefghij" * 9)  # 90 tokens: two chunks
CAPTIONS = ["a cat", LONG, ""]


@dataclass
class Counting:
    """A model that counts the prompts it encodes."""

    model: BaseModel
    encoded: list[str] = field(default_factory=list)

    def encode_prompts(self, prompts: Sequence[str], chunks: int = 1) -> Conditioning:
        self.encoded += prompts
        return self.model.encode_prompts(prompts, chunks)

    def __getattr__(self, name: str) -> object:
        return getattr(self.model, name)


@pytest.fixture(scope="module", params=[Family.SD1, Family.SDXL], ids=str)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = tmp_path_factory.mktemp("conditions") / request.param
    families.pipeline(request.param, folder / "words").save_pretrained(folder)
    return load(Base(model=str(folder), device="cpu"))


def conditions(model: object, folder: Path | None, most_chunks: int = 3) -> Conditions:
    return Conditions(model, most_chunks, DiskStore(folder) if folder else None)  # type: ignore[arg-type]


def close(one: Conditioning, other: Conditioning) -> None:
    torch.testing.assert_close(one.hidden, other.hidden)
    torch.testing.assert_close(one.pooled, other.pooled)


@torch.no_grad()
def test_what_is_kept_reads_as_what_is_encoded_now(model: BaseModel, tmp_path: Path) -> None:
    kept = conditions(model, tmp_path)
    kept.prepare(CAPTIONS, lambda done: None)
    for captions in (CAPTIONS, ["a cat"], ["", "a dog"]):
        chunks = kept.chunks(captions)
        close(kept.read(captions), model.encode_prompts(captions, chunks))
        close(kept.read_to_learn(captions, 3), model.encode_prompts(captions, 3))
    assert kept.chunks(["a cat"]) == 1 and kept.chunks(CAPTIONS) == 2


def test_the_next_run_encodes_nothing(model: BaseModel, tmp_path: Path) -> None:
    conditions(model, tmp_path).prepare(CAPTIONS, lambda done: None)
    counting = Counting(model)
    again = conditions(counting, tmp_path)
    said: list[int] = []
    again.prepare(CAPTIONS, said.append)
    again.read(CAPTIONS)
    assert counting.encoded == [] and said == [3]


def test_other_limits_and_encoders_never_meet_what_was_kept(
    model: BaseModel, tmp_path: Path
) -> None:
    conditions(model, tmp_path).prepare(CAPTIONS, lambda done: None)
    assert isinstance(model, StableDiffusion)
    encoder = type(model.text_encoder)(model.text_encoder.config).eval()
    for other, most in ((model, 1), (replace(model, text_encoder=encoder), 3)):
        counting = Counting(other)
        conditions(counting, tmp_path, most).prepare(CAPTIONS, lambda done: None)
        assert counting.encoded == CAPTIONS


@pytest.mark.parametrize("where", ["tokenizer", "text_encoder"])
def test_settings_of_tokenizer_and_encoder_count_too(model: BaseModel, where: str) -> None:
    assert isinstance(model, StableDiffusion)
    other = replace(model, **{where: copy.deepcopy(getattr(model, where))})
    assert other.text_fingerprint == model.text_fingerprint
    other = replace(model, **{where: copy.deepcopy(getattr(model, where))})
    if where == "tokenizer":
        other.tokenizer.pad_token = "!"
    else:
        other.text_encoder.config.hidden_act = "relu"
    assert other.text_fingerprint != model.text_fingerprint


def test_a_broken_entry_is_encoded_again(model: BaseModel, tmp_path: Path) -> None:
    conditions(model, tmp_path).prepare(CAPTIONS, lambda done: None)
    for file in tmp_path.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:40])
    with torch.no_grad():
        close(conditions(model, tmp_path).read(CAPTIONS), model.encode_prompts(CAPTIONS, 2))


def test_memory_does_not_grow_with_the_captions(model: BaseModel, tmp_path: Path) -> None:
    kept = conditions(model, tmp_path)
    for number in range(100):
        kept.read([f"caption {number}"])
    assert len(kept._at_hand) <= 64


def test_encoders_that_learn_are_asked_each_time(model: BaseModel) -> None:
    counting = Counting(model)
    learning = conditions(counting, None)
    weight = next(next(iter(model.text_encoders.values())).parameters())
    weight.requires_grad_(True)
    try:
        for _ in range(2):
            assert learning.read_to_learn(["a cat"], 1).hidden.requires_grad
    finally:
        weight.requires_grad_(False)
    for _ in range(2):  # once they have stopped, they are asked once
        learning.read_to_learn(["a cat"], 1)
    assert len(counting.encoded) == 3
    learning.read(["a cat"])  # may be measured with other strengths, so never from memory
    assert len(counting.encoded) == 4
