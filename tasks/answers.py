"""Answers as text, for tasks on generative backbones: trained token by token, then generated or scored."""

from __future__ import annotations

from collections.abc import Sequence
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

    @cached_property
    def ids(self) -> list[list[int]]:
        """Token ids of each candidate, with the token that ends an answer."""
        return [self.processor.answer_ids(text) for text in self._texts]

    @cached_property
    def _table(self) -> Tensor:
        table = torch.full((len(self.ids), max(map(len, self.ids))), IGNORED)
        for row, ids in zip(table, self.ids, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        return table

    def tokens(self, chosen: Tensor) -> Tensor:
        """Candidates by index `(B,)` → their token ids `(B, A)`, `IGNORED` behind their ends."""
        rows = self._table[chosen.cpu()]
        return rows[:, : int((rows != IGNORED).sum(dim=1).max())].to(chosen.device)

    def logits(self, backbone: GenerativeBackbone, batch: Batch, chosen: Tensor) -> Tensor:
        """Logits `(B, A, V)` of each token of the chosen candidates, given the earlier ones."""
        return backbone.answer_logits(batch.inputs, self.tokens(chosen).clamp(min=0))

    def loss(self, logits: Tensor, chosen: Tensor) -> Tensor:
        """Cross-entropy: a mean over each answer's tokens, then over the examples."""
        tokens = self.tokens(chosen)
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


def answer_forward(answers: Answers, backbone: Backbone, batch: Batch, chosen: Tensor | None) -> Tensor:
    """What training minimises: logits of the true answers' tokens `(B, A, V)`.

    chosen: the true candidates `(B,)`; None: only the prompt runs, up to the logits of the first token, `(B, V)`.
    """
    assert isinstance(backbone, GenerativeBackbone)
    if chosen is None:
        return backbone.prompt_logits(batch.inputs)
    return answers.logits(backbone, batch, chosen)


def find_answers(answers: Answers, backbone: Backbone, batch: Batch, answering: Answering) -> Tensor:
    """Generated token ids `(B, length)`, or log-likelihoods `(B, candidates)`."""
    assert isinstance(backbone, GenerativeBackbone)
    return answers.write(backbone, batch) if answering == "generation" else answers.scores(backbone, batch)
