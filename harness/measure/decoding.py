"""Costs of the tokens that a generative backbone writes, apart from those of the prompt before them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from harness.backbones.generative import GenerativeBackbone, Prefilled


@dataclass(frozen=True)
class Decoding:
    """Cost of one further token after the prompt, and what is kept of the prompt for it.

    prompt_tokens: length of the prompt, with its images and with the tokens that a method adds.
    token_macs: multiply-accumulates of the first further token, all components. Each later one attends to one token
        more.
    cache_bytes: keys and values of the prompt. precision: the type that they are kept in, that of the weights.
    """

    prompt_tokens: int
    token_macs: int
    cache_bytes: int
    precision: str


def next_token(backbone: GenerativeBackbone, before: Prefilled) -> Callable[[], Tensor]:
    """The computation of the logits `(B, 1, V)` behind the first token that is written after a prompt.

    It can be called any number of times and does the same work each time.
    """
    token = backbone.vocabulary_logits(backbone.normed(before.hidden)).argmax(dim=-1)

    def run() -> Tensor:
        # What this token adds to the keys and values must not be there at the next call.
        hidden = backbone.decode(replace(before, past=before.past.frozen()), token)
        return backbone.vocabulary_logits(backbone.normed(hidden))

    return run
