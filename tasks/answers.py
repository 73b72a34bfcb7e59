"""Answers as text, for tasks on generative backbones: trained token by token, then generated or scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.backbones.base import Backbone
from harness.backbones.generative import GenerativeBackbone, GenerativeProcessor
from tasks.base import Batch

Answering = Literal["generation", "likelihood"]
"""How an answer is found: written greedily, or the candidate with the highest likelihood."""

IGNORED = -100


class Answers:
    """The candidate answers of a task as token ids of one backbone's vocabulary, made on first use.

    processor: of the backbone. texts: the candidates. length: longest answer to generate, in tokens.
    """

    def __init__(self, processor: GenerativeProcessor, texts: Sequence[str], length: int) -> None:
        self.processor, self._texts, self.length = processor, texts, length
        self._tables: dict[torch.device, Tensor] = {}

    @cached_property
    def ids(self) -> list[list[int]]:
        """Token ids of each candidate, with the token that ends an answer."""
        return [self.processor.answer_ids(text) for text in self._texts]

    def longest(self, chosen: Sequence[int]) -> int:
        """Tokens of the longest of some candidates, by index."""
        return max(len(self.ids[index]) for index in chosen)

    def tokens(self, chosen: Tensor, length: int) -> Tensor:
        """Candidates by index `(B,)` → their first token ids `(B, length)`, `IGNORED` behind their ends."""
        if chosen.device not in self._tables:
            rows = nn.utils.rnn.pad_sequence(list(map(torch.tensor, self.ids)), True, IGNORED)
            self._tables[chosen.device] = rows.to(chosen.device)
        return self._tables[chosen.device][chosen, :length]

    def logits(self, backbone: GenerativeBackbone, batch: Batch, chosen: Tensor, length: int) -> Tensor:
        """Logits `(B, A, V)` of each token of the chosen candidates, given the earlier ones.

        length: A, at least that of the longest chosen candidate.
        """
        return backbone.answer_logits(batch.inputs, self.tokens(chosen, length).clamp(min=0))

    def loss(self, logits: Tensor, chosen: Tensor) -> Tensor:
        """Cross-entropy: a mean over each answer's tokens, then over the examples."""
        tokens = self.tokens(chosen, logits.shape[1])
        each = functional.cross_entropy(
            logits.transpose(1, 2), tokens, ignore_index=IGNORED, reduction="none"
        )
        return (each.sum(dim=1) / (tokens != IGNORED).sum(dim=1)).mean()

    def write(self, backbone: GenerativeBackbone, batch: Batch) -> Tensor:
        """Token ids `(B, length)` of greedily generated answers, filled up with the token that ends them."""
        end = self.processor.end_ids[0]
        written = backbone.generate(batch.inputs, self.length, self.processor.end_ids)
        return functional.pad(written, (0, self.length - written.shape[1]), value=end)

    def scores(self, backbone: GenerativeBackbone, batch: Batch) -> Tensor:
        """Log-likelihood `(B, candidates)` of each candidate."""
        return backbone.answer_scores(batch.inputs, self.ids)

    def read(self, written: Tensor) -> list[str]:
        """The texts of what `write` returned."""
        return [self.processor.answer_text(row) for row in written.long().tolist()]


def make_answers(backbone: Backbone, texts: Sequence[str], length: int) -> Answers | None:
    """The answers on a generative backbone; None on others, which have a classification head."""
    if not isinstance(backbone, GenerativeBackbone):
        return None
    return Answers(backbone.processor, texts, length)


def headless() -> nn.Module:
    """The head of a task whose answers the backbone's own vocabulary gives."""
    return nn.Identity()


def answer_forward(
    answers: Answers, backbone: Backbone, batch: Batch, chosen: Callable[[Tensor], Tensor]
) -> Tensor:
    """What training minimises: logits of the true answers' tokens `(B, A, V)`.

    Without targets only the prompt runs, up to the logits of the first token, `(B, V)`.

    chosen: the true candidates `(B,)` by the targets.
    """
    assert isinstance(backbone, GenerativeBackbone)
    on_host = batch.targets_on_host()
    if batch.targets is None or on_host is None:
        return backbone.prompt_logits(batch.inputs)
    length = answers.longest(chosen(on_host).tolist())
    return answers.logits(backbone, batch, chosen(batch.targets), length)


def find_answers(answers: Answers, backbone: Backbone, batch: Batch, answering: Answering) -> Tensor:
    """Generated token ids `(B, length)`, or log-likelihoods `(B, candidates)`."""
    assert isinstance(backbone, GenerativeBackbone)
    return answers.write(backbone, batch) if answering == "generation" else answers.scores(backbone, batch)
