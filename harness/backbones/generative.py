"""Generative backbones: logits over a vocabulary besides pooled features.

Prompts are padded on the left, so that the tokens after them start at the same position in every row.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from harness.backbones.base import Backbone, Processor
from harness.backbones.block import BlockInput, Causal, KeyValueCache, Tokens, run_block
from harness.backbones.inputs import Inputs, Stream, Streams


class GenerativeProcessor(Processor, Protocol):
    """Turns prompts and images into inputs, and answers into tokens and back."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""

    def answer_ids(self, text: str) -> list[int]:
        """Ids of an answer after a prompt, including the token that ends it."""

    def answer_text(self, ids: Sequence[int]) -> str:
        """The text of an answer's ids up to the first token that ends it."""


Images = Inputs | tuple[Inputs, ...]
"""A prompt with one image, or the same prompt once for each of its images."""


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A prompt that has been run.

    prompt: its tokens before the first block, `(B, T, D)`. past: their keys and values. hidden: the state of the last
    one after the last block, `(B, 1, D)`.
    """

    prompt: Stream
    past: KeyValueCache
    hidden: Tensor


class GenerativeBackbone(Backbone):
    """An image encoder followed by a decoder, whose one stream holds the prompt with its image tokens."""

    stream_names: ClassVar[tuple[str, ...]] = ("joint",)  # type: ignore[misc]
    processor: GenerativeProcessor

    @abstractmethod
    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids `(B, T)` → hidden states `(B, T, D)` before the first block."""

    @abstractmethod
    def rotary(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines `(B, 1, T, head size)` of positions `(B, T)`, in the type of `hidden`."""

    @property
    @abstractmethod
    def image_end(self) -> int:
        """Number of tokens of a prompt up to the end of its image, which stands at the same place in all prompts."""

    @property
    @abstractmethod
    def image_start(self) -> int:
        """Number of tokens of a prompt before its image."""

    @abstractmethod
    def normed(self, hidden: Tensor) -> Tensor:
        """Apply the norm after the last block."""

    @abstractmethod
    def vocabulary_logits(self, hidden: Tensor) -> Tensor:
        """Hidden states after the norm `(…, D)` → logits `(…, V)`."""

    def fuse(self, streams: Streams) -> Tensor:
        """The feature for a classification head: the state of each prompt's last token after the norm, `(B, D)`."""
        stream = self._prompted(streams)
        hidden = self._run(stream.hidden, stream.mask, None)
        return self.normed(hidden[:, -1])

    def token_states(self, inputs: Inputs) -> Tensor:
        """The state of every token of the prompt after the norm, `(B, T, D)`, T with the image's tokens."""
        stream = self._prompted({"joint": self._streamed(inputs)})
        return self.normed(self._run(stream.hidden, stream.mask, None))

    def prompt_logits(self, inputs: Images) -> Tensor:
        """Logits `(B, V)` of the first token after each prompt."""
        return self.vocabulary_logits(self.fuse({"joint": self._streamed(inputs)}))

    def answer_logits(self, inputs: Images, answers: Tensor) -> Tensor:
        """Logits `(B, A, V)` for each token of the answers `(B, A)`, given the prompt and the earlier answer tokens.

        answers: padded on the right; the logits of padding have no meaning.
        """
        stream = self._prompted({"joint": self._streamed(inputs)})
        hidden = torch.cat([stream.hidden, self.embed(answers[:, :-1]).to(stream.hidden.dtype)], dim=1)
        mask = stream.mask
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), answers.shape[1] - 1)], dim=1)
        prompt = stream.hidden.shape[1]
        hidden = self._run(hidden, mask, None, prompt=prompt)[:, prompt - 1 :]
        return self.vocabulary_logits(self.normed(hidden))

    def prefill(self, inputs: Images) -> Prefilled:
        """Run the prompts and keep their keys and values."""
        prompt, past = self._prompted({"joint": self._streamed(inputs)}), KeyValueCache()
        return Prefilled(prompt, past, self._run(prompt.hidden, prompt.mask, past)[:, -1:])

    def decode(self, before: Prefilled, token: Tensor, written: int = 0) -> Tensor:
        """The state `(B, 1, D)` of one more token `(B, 1)` after the last block, before the norm.

        written: number of tokens between the prompt and this one; `before.past` holds them, and then this one too.
        """
        embedded = self.embed(token).to(before.hidden.dtype)
        return self._run(embedded, before.prompt.mask, before.past, before.prompt, written)

    @torch.no_grad()
    def answer_scores(self, inputs: Images, candidates: Sequence[Sequence[int]]) -> Tensor:
        """Log-likelihood `(B, C)` of each candidate's tokens after each prompt, summed over the tokens.

        The prompts run once; each candidate continues from their keys and values.
        """
        before = self.prefill(inputs)
        stream, last = before.prompt, before.hidden
        rows, scores = len(last), []
        for candidate in candidates:
            tokens = torch.tensor(candidate, device=last.device).expand(rows, -1)
            states = last
            if len(candidate) > 1:
                embedded = self.embed(tokens[:, :-1]).to(last.dtype)
                states = torch.cat(
                    [last, self._run(embedded, stream.mask, before.past.frozen(), stream)], dim=1
                )
            logits = self.vocabulary_logits(self.normed(states)).float().log_softmax(dim=-1)
            scores.append(logits.gather(2, tokens[:, :, None]).sum(dim=(1, 2)))
        return torch.stack(scores, dim=1)

    @torch.no_grad()
    def generate(self, inputs: Images, length: int, stop: Collection[int]) -> Tensor:
        """Greedy continuation of each prompt, `(B, N)` token ids, N ≤ `length`.

        A row ends with its first token of `stop`, which fills the rest of the row.
        """
        before = self.prefill(inputs)
        hidden = before.hidden
        written: list[Tensor] = []
        stopping = torch.tensor(sorted(stop), device=hidden.device)
        ended = torch.zeros(len(hidden), 1, dtype=torch.bool, device=hidden.device)
        while True:
            token = self.vocabulary_logits(self.normed(hidden)).argmax(dim=-1)
            written.append(torch.where(ended, written[-1], token) if written else token)
            ended = ended | torch.isin(token, stopping)
            if len(written) == length or bool(ended.all()):
                return torch.cat(written, dim=1)
            hidden = self.decode(before, written[-1], len(written) - 1)

    def _streamed(self, inputs: Images) -> Stream:
        """The prompt with all its images, one behind the other in place of the only one."""
        parts = (inputs,) if isinstance(inputs, Inputs) else inputs
        first, *others = (self.encoded(part)["joint"] for part in parts)
        if not others:
            return first
        # Every part is the same but for its image, so that images stand at the same places.
        start, count = self.image_start, self.image_end - self.image_start
        rows, length, width = first.hidden.shape
        padding = 0 if first.mask is None else length - first.mask.sum(dim=1, keepdim=True)
        places = torch.arange(count, device=first.hidden.device).expand(rows, -1) + start + padding
        images = [
            part.hidden.gather(1, places[:, :, None].expand(-1, -1, width)) for part in (first, *others)
        ]
        added = len(others) * count
        hidden = torch.cat([first.hidden, *images], dim=1)
        # Tokens up to the first image, the other images (behind all tokens), the rest.
        order = torch.arange(length + added, device=hidden.device).expand(rows, -1)
        behind = order - start - padding - count
        source = torch.where(
            behind < 0, order, torch.where(behind < added, length + count + behind, order - added)
        )
        mask = (
            None
            if first.mask is None
            else torch.cat([first.mask, first.mask.new_ones(rows, count + added)], dim=1).gather(1, source)
        )
        return Stream(hidden.gather(1, source[:, :, None].expand(-1, -1, width)), mask)

    def _prompted(self, streams: Streams) -> Stream:
        return (streams if self.prompt is None else self.prompt(streams))["joint"]

    def _run(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        past: KeyValueCache | None,
        after: Stream | None = None,
        written: int = 0,
        prompt: int | None = None,
    ) -> Tensor:
        """The states after the last block, before the norm.

        mask: `(B, S)`, of the prompt if the tokens follow one (`after`), else of the tokens. written: number of tokens
        between that prompt and these. prompt: number of leading tokens that are the prompt; by default all, or none
        if the tokens follow one.
        """
        rows, count = hidden.shape[:2]
        earlier = 0 if after is None else after.hidden.shape[1] + written
        if mask is None:
            positions = torch.arange(earlier, earlier + count, device=hidden.device).expand(rows, -1)
        else:
            mask = torch.cat([mask, mask.new_ones(rows, earlier + count - mask.shape[1])], dim=1)
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, earlier:]
        cosines, sines = self.rotary(hidden, positions)
        causal = Causal(cosines, sines, past, prompt if after is None else 0)
        tokens = Tokens(hidden, _attention_mask(mask, earlier, count, hidden))
        for block in self.blocks:
            tokens = run_block(block, BlockInput(tokens, causal=causal)).tokens
        return tokens.hidden


def _attention_mask(mask: Tensor | None, earlier: int, count: int, hidden: Tensor) -> Tensor | None:
    """Attention mask of `count` tokens, `(B or 1, 1, count, earlier + count)`; None: each attends to all up to itself.

    Padding attends to itself, because a softmax needs at least one entry.
    """
    if mask is None and (earlier == 0 or count == 1):
        return None
    total = earlier + count
    allowed = torch.ones(count, total, dtype=torch.bool, device=hidden.device).tril(earlier)[None]
    if mask is not None:
        itself = torch.eye(count, total, dtype=torch.bool, device=hidden.device).roll(earlier, dims=1)
        allowed = allowed & (mask[:, None] | itself)
    lowest = torch.finfo(hidden.dtype).min
    return torch.zeros_like(allowed, dtype=hidden.dtype).masked_fill_(~allowed, lowest)[:, None]
