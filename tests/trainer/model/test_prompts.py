"""Prompts of any length: each chunk is read as a prompt of its own would be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests import tiny
from tests.trainer.adapter import families
from trainer.model import prompts
from trainer.model.bases import Family
from trainer.model.load import load
from trainer.model.stable_diffusion import BaseModel
from trainer.settings import Base

LONG = " ".join("abcdefghij" * 16)  # 160 words of one token each
FIRST, SECOND, THIRD = (" ".join(LONG.split()[n : n + 75]) for n in (0, 75, 150))


@pytest.fixture(scope="module", params=Family, ids=str)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = tmp_path_factory.mktemp("prompts") / request.param
    families.pipeline(request.param, folder / "words").save_pretrained(folder)
    return load(Base(model=str(folder), device="cpu"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny.tokenizer(tmp_path_factory.mktemp("words"))


@pytest.mark.parametrize("prompt", ["", "a cat", FIRST, LONG])
def test_one_chunk_holds_what_the_tokenizer_itself_gives(tokenizer: Any, prompt: str) -> None:
    wanted = tokenizer(
        [prompt], padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    ).input_ids
    assert torch.equal(prompts.token_ids(tokenizer, [prompt], 1)[0], wanted)


def test_the_number_of_chunks_is_that_of_the_longest(tokenizer: Any) -> None:
    for texts, most, chunks in (
        ([""], 3, 1),
        ([FIRST], 3, 1),
        ([f"{FIRST} a"], 3, 2),
        (["a", LONG, ""], 3, 3),
        ([LONG], 2, 2),
    ):
        assert prompts.chunks_needed([tokenizer], texts, most) == chunks


def test_weights_lie_where_their_tokens_do(tokenizer: Any) -> None:
    ids = prompts.tokens(tokenizer, LONG)
    rows = prompts.laid_out([float(id) for id in ids], 4, 75, -1.0, -2.0, -2.0)
    placed = prompts.token_ids(tokenizer, [LONG], 4)[0]
    assert torch.equal(torch.tensor(rows).long()[:, 1:-1].clamp(min=1), placed[:, 1:-1])
    assert [row[0] for row in rows] == [-1.0] * 4


@torch.no_grad()
def test_chunks_are_read_alone_and_laid_end_to_end(model: BaseModel) -> None:
    whole = model.encode_prompts([LONG, "a cat"], chunks=3)
    parts = [model.encode_prompts([text]).hidden for text in (FIRST, SECOND, THIRD)]
    torch.testing.assert_close(whole.hidden[:1], torch.cat(parts, dim=1))
    short = [model.encode_prompts([text]).hidden for text in ("a cat", "", "")]
    torch.testing.assert_close(whole.hidden[1:], torch.cat(short, dim=1))
    if whole.pooled is not None:  # what the first chunk says
        pooled = [model.encode_prompts([text]).pooled for text in (FIRST, "a cat")]
        torch.testing.assert_close(whole.pooled, torch.cat([p for p in pooled if p is not None]))
    assert (whole.pooled is not None) == (model.family is Family.SDXL)


def test_words_of_every_chunk_have_gradients(model: BaseModel) -> None:
    encoder = next(iter(model.text_encoders.values()))
    embedding = encoder.get_input_embeddings()
    embedding.weight.requires_grad_(True)
    hidden = model.encode_prompts([f"{FIRST} z"], chunks=2).hidden
    hidden[:, 77:].sum().backward()
    (id,) = prompts.tokens(model.tokenizers[0], "z")
    assert embedding.weight.grad[id].abs().max() > 0
    embedding.weight.requires_grad_(False).grad = None
