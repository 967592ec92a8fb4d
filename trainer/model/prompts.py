"""Prompts of any length, as the text encoders can read them.

CLIP reads 75 tokens at once, between two marks. A longer prompt is cut into chunks of 75, each read
on its own, and their hidden states are laid end to end: what A1111, ComfyUI and kohya's trainer do,
so an adapter trained on long captions finds them again there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from trainer.errors import UserError

T = TypeVar("T")


def tokens(tokenizer: Any, prompt: str) -> list[int]:
    """The token ids of a prompt, however many, without the marks around them."""
    ids = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
    return list(ids)


def chunk_length(tokenizer: Any) -> int:
    """Tokens that are read at once, without the marks: 75 for CLIP."""
    return int(tokenizer.model_max_length) - 2


def chunks_needed(tokenizers: Sequence[Any], prompts: Sequence[str], most: int) -> int:
    """In how many chunks the longest of the prompts is read: 1 to `most`."""
    needed = (
        -(-len(tokens(tokenizer, prompt)) // chunk_length(tokenizer))
        for tokenizer in tokenizers
        for prompt in prompts
    )
    return min(max(1, *needed), most)


def token_ids(tokenizer: Any, prompts: Sequence[str], chunks: int) -> Tensor:
    """[B, chunks, 77]: the prompts in so many chunks each; what is longer is cut, what is shorter
    goes on with empty chunks."""
    marks = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    length = chunk_length(tokenizer)
    return torch.tensor([laid_out(tokens(tokenizer, p), chunks, length, *marks) for p in prompts])


def laid_out(
    values: Sequence[T], chunks: int, length: int, start: T, end: T, padding: T
) -> list[list[T]]:
    """Values of the tokens of one prompt, such as their ids or their weights, in their places:
    `chunks` rows of `start`, up to `length` values, `end`, and `padding` to the same width."""
    parts = [list(values[first : first + length]) for first in range(0, chunks * length, length)]
    return [[start, *part, end, *[padding] * (length - len(part))] for part in parts]


def end_to_end(hidden: Tensor, chunks: int) -> Tensor:
    """Hidden states [B · chunks, tokens, width] of chunks as those of prompts, [B, chunks · tokens,
    width]."""
    return hidden.reshape(len(hidden) // chunks, -1, hidden.shape[-1])


def weighted(hidden: Tensor, weights: Tensor) -> Tensor:
    """Hidden states [B · chunks, tokens, width] multiplied by the weights [B, chunks, tokens] of
    their tokens; then each chunk is scaled back to the mean it had, as A1111 does by default. A
    chunk whose weights are all 1 is left alone to the bit."""
    factors = weights.flatten(0, 1)[..., None].to(hidden.device)
    if bool((factors == 1).all()):
        return hidden
    emphasised = hidden.float() * factors
    before, after = (one.mean((1, 2), keepdim=True) for one in (hidden.float(), emphasised))
    restoring = torch.where(after == 0, 1.0, before / after)
    return (emphasised * restoring).to(hidden.dtype)


def hidden_before(output: Any, clip_skip: int) -> Tensor:
    """A text encoder's hidden states `clip_skip` - 1 layers before its last, without the final
    layer norm. Raises UserError if it has not so many layers."""
    layers = len(output.hidden_states) - 1
    if clip_skip > layers:
        raise UserError(
            f"A clip skip of {clip_skip} is too many for a text encoder of {layers} layers.",
            f"Give at most {layers}.",
        )
    return output.hidden_states[-clip_skip]  # type: ignore[no-any-return]
