"""Trains the tokenizer and the text encoder.

The encoder learns to tell what a scene contains from any of its captions: linear heads read all the
attributes from its output at the end and at padding positions, where the denoiser looks as well. It
is then frozen, and the heads are thrown away.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from trainer.model.embedded.build_loop import DEVICE, Plan, save, train
from trainer.model.embedded.drawings import ATTRIBUTES, captions_of, labels, scene_number

TOKENS = 77
WIDTH = 128
START, END = "<|startoftext|>", "<|endoftext|>"


def new_tokenizer(captions: list[str], folder: Path) -> CLIPTokenizer:
    """A byte-level BPE tokenizer as CLIP's, its merges learned from captions.

    All 256 bytes are in its vocabulary, so that any text has tokens. A merge must be seen 60 times,
    which keeps the meaningless words of the captions in pieces: a trigger word is a new sequence of
    pieces that the base knows to read past.
    """
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    learner.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=2_000, min_frequency=60, end_of_word_suffix="</w>", show_progress=False
        ),
    )
    merges = [tuple(m) for m in json.loads(learner.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [
        *alphabet,
        *(f"{letter}</w>" for letter in alphabet),
        *dict.fromkeys(a + b for a, b in merges),
        START,
        END,
    ]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)
    tokenizer.save_pretrained(folder)
    # tools that predate tokenizer.json read these two
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return tokenizer


def new_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained text encoder: 3 layers, 128 wide.

    CLIP's own initialisation is far too small for this width: with it the end of the text never
    learned what stands at its beginning.
    """
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            attn_implementation="eager",
        )
    )
    for name, parameter in encoder.named_parameters():
        if "token_embedding" in name or "position_embedding" in name:
            nn.init.normal_(parameter, std=0.05 if "token" in name else 0.01)
        elif parameter.ndim == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return encoder.to(DEVICE)


def corpus(work: Path, count: int, seed: int) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
    """Tokens of all captions [N, 4, 77] and attributes [N, 17] of the first `count` scenes."""
    path = work / "corpus.npz"
    if not path.exists():
        scenes = [scene_number(i, seed) for i in range(count)]
        captions = [text for i, scene in enumerate(scenes) for text in captions_of(scene, i, seed)]
        tokenizer = (
            CLIPTokenizer.from_pretrained(work / "tokenizer")
            if (work / "tokenizer").exists()
            else new_tokenizer(captions, work / "tokenizer")
        )
        tokens = tokenise(tokenizer, captions).numpy().astype(np.int16)
        np.savez(
            path.with_suffix(".partly.npz"),
            tokens=tokens.reshape(count, -1, TOKENS),
            labels=labels(scenes),
        )
        path.with_suffix(".partly.npz").replace(path)
    with np.load(path) as stored:
        return stored["tokens"], stored["labels"]


def tokenise(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token numbers [N, 77], padded and cut as Stable Diffusion's pipelines do."""
    ids: Tensor = tokenizer(
        texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
    ).input_ids
    return ids


class TextLoss(nn.Module):
    """An encoder with one linear head for each attribute, and their summed cross-entropy."""

    def __init__(
        self, encoder: CLIPTextModel, tokens: NDArray[np.int16], truths: NDArray[np.int64], end: int
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList(nn.Linear(WIDTH, len(v)) for v in ATTRIBUTES.values())
        self.tokens, self.truths, self.end = tokens, truths, end

    def __call__(self, generator: torch.Generator, share: float) -> tuple[Tensor, dict[str, float]]:
        picks = torch.randint(0, len(self.tokens), (64,), generator=generator).numpy()
        which = int(torch.randint(0, self.tokens.shape[1], (), generator=generator))
        tokens = torch.from_numpy(self.tokens[picks, which].astype(np.int64)).to(DEVICE)
        truths = torch.from_numpy(self.truths[picks]).to(DEVICE)
        hidden = self.encoder(tokens).last_hidden_state
        first_end = (tokens == self.end).int().argmax(1)
        spread = torch.rand(len(picks), generator=generator).to(DEVICE)
        padding = (first_end + spread * (TOKENS - first_end)).long()
        rows = torch.arange(len(picks), device=DEVICE)
        loss, right = torch.zeros((), device=DEVICE), []
        for i, head in enumerate(self.heads):
            for place in (first_end, padding):
                scores = head(hidden[rows, place])
                loss = loss + F.cross_entropy(scores, truths[:, i])
                right.append((scores.argmax(1) == truths[:, i]).float().mean())
        return loss / len(right), {"right": torch.stack(right).mean().item()}


def train_text(work: Path, count: int, seed: int, minutes: float) -> None:
    """Trains the text encoder, further where there is a `text-start.pt`; leaves `text-done.pt`."""
    torch.manual_seed(1)
    tokens, truths = corpus(work, count, seed)
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    encoder = new_encoder(tokenizer)
    start, rate = work / "text-start.pt", 2e-3
    if start.exists():
        encoder.load_state_dict(torch.load(start, map_location=DEVICE, weights_only=True))
        rate = 7e-4
    part = TextLoss(encoder, tokens, truths, tokenizer.eos_token_id).to(DEVICE)
    train(Plan("text", part, part.__call__, minutes, rate=rate, flat=0.3, ema=0.99), work)
    save(work / "text-done.pt", part.encoder.state_dict())
