"""Where RoE's two routing tokens stand in the streams of a backbone, and what they see.

A routing token reads the other tokens in every block, and no other token reads it. One is for the image and one for the
text; the router of a block reads both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from torch import Tensor

from harness.backbones.block import BlockInput, Causal, KeyValueCache, Tokens
from harness.backbones.inputs import Stream, Streams


class Layout(ABC):
    """One way of placing the routing tokens."""

    @abstractmethod
    def place(self, streams: Streams, image: Tensor, text: Tensor) -> Streams:
        """Put the tokens `(D,)` into the streams."""

    @abstractmethod
    def signals(self, inputs: BlockInput) -> tuple[Tensor, Tensor]:
        """States `(B, D)` of the image's and of the text's routing token before a block."""

    @abstractmethod
    def opened(self, inputs: BlockInput) -> BlockInput:
        """The input of the pretrained block: with a mask that hides the routing tokens from the others."""


class JoinedLayout(Layout):
    """One stream, read in both directions (ViLT): both tokens stand at the end and see everything."""

    def place(self, streams: Streams, image: Tensor, text: Tensor) -> Streams:
        """As `Layout.place`."""
        (name,) = streams
        return {name: _appended(streams[name], torch.stack([image, text]))}

    def signals(self, inputs: BlockInput) -> tuple[Tensor, Tensor]:
        """As `Layout.signals`."""
        return inputs.tokens.hidden[:, -2], inputs.tokens.hidden[:, -1]

    def opened(self, inputs: BlockInput) -> BlockInput:
        """As `Layout.opened`."""
        return replace(inputs, tokens=_hidden_from_others(inputs, 2))


class CrossLayout(Layout):
    """Two streams (METER): each has its own token at the end, which sees its stream and, across, the other one."""

    def place(self, streams: Streams, image: Tensor, text: Tensor) -> Streams:
        """As `Layout.place`."""
        tokens = {"image": image, "text": text}
        return {name: _appended(stream, tokens[name][None]) for name, stream in streams.items()}

    def signals(self, inputs: BlockInput) -> tuple[Tensor, Tensor]:
        """As `Layout.signals`. The own token comes first: the block's stream decides which one it is."""
        if inputs.context is None:
            raise ValueError("a block of two streams needs a context")
        return inputs.tokens.hidden[:, -1], inputs.context.hidden[:, -1]

    def opened(self, inputs: BlockInput) -> BlockInput:
        """As `Layout.opened`; the context is without its token."""
        context = inputs.context
        if context is not None:
            context = context.first(len(context) - 1)
        return replace(inputs, tokens=_hidden_from_others(inputs, 1), context=context)


class CausalLayout(Layout):
    """A decoder's stream (LLaVA): both tokens stand first. The image's sees the prompt up to the end of the image, the
    text's the rest of the prompt.

    leading: number of tokens of the prompt up to the end of the image.
    """

    def __init__(self, leading: int) -> None:
        self.leading = leading

    def place(self, streams: Streams, image: Tensor, text: Tensor) -> Streams:
        """As `Layout.place`."""
        stream = streams["joint"]
        both = torch.stack([image, text]).to(stream.hidden.dtype).expand(len(stream.hidden), -1, -1)
        mask = stream.mask
        if mask is not None:
            mask = torch.cat([mask.new_ones(len(mask), 2), mask], dim=1)
        return {"joint": replace(stream, hidden=torch.cat([both, stream.hidden], dim=1), mask=mask)}

    def signals(self, inputs: BlockInput) -> tuple[Tensor, Tensor]:
        """As `Layout.signals`."""
        return inputs.tokens.hidden[:, 0], inputs.tokens.hidden[:, 1]

    def opened(self, inputs: BlockInput) -> BlockInput:
        """As `Layout.opened`. Keys and values of the routing tokens are not cached.

        In a continuation the routing tokens are no longer there, only their columns in the mask.

        Raises:
            ValueError: there are no positions.
        """
        tokens, causal = inputs.tokens, inputs.causal
        if causal is None:
            raise ValueError("a decoder's block needs positions")
        if causal.prompt == 0:
            # In memory of its own, as CUDA's attention reads 16 bytes of a mask at a time.
            mask = None if tokens.mask is None else tokens.mask[..., 2:].contiguous()
            return replace(inputs, tokens=replace(tokens, mask=mask))
        past = None if causal.past is None else _WithoutFirst(causal.past, 2)
        return replace(
            inputs,
            tokens=replace(tokens, mask=self._mask(tokens, causal)),
            causal=replace(causal, past=past),
        )

    def _mask(self, tokens: Tokens, causal: Causal) -> Tensor:
        """The mask `(B or 1, 1, T, T)` of a prompt, with what follows it in training."""
        count = len(tokens)
        lowest = torch.finfo(tokens.hidden.dtype).min
        if tokens.mask is None:
            mask = torch.full((1, 1, count, count), lowest, device=tokens.hidden.device)
            mask = mask.triu(1).to(tokens.hidden.dtype)
        else:
            mask, lowest = tokens.mask.clone(), torch.finfo(tokens.mask.dtype).min
        real = mask[:, 0, -1] == 0  # the last token sees all but padding
        padding = (~real).sum(dim=1, keepdim=True)
        place = torch.arange(count, device=real.device) - 2 - padding  # within the prompt
        inside = torch.arange(count, device=real.device) < (count if causal.prompt is None else causal.prompt)
        seen = torch.stack(
            [(place >= 0) & (place < self.leading), (place >= self.leading) & inside & real], dim=1
        )
        seen[:, [0, 1], [0, 1]] = True
        mask[:, 0, :2] = torch.where(seen & inside, 0.0, lowest).to(mask.dtype)
        mask[:, :, 2:, :2] = lowest
        return mask


class _WithoutFirst(KeyValueCache):
    """Keeps no keys and values of the first `count` tokens of a prompt."""

    def __init__(self, past: KeyValueCache, count: int) -> None:
        super().__init__()
        self._past = past
        self._count = count

    def extend(self, name: str, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """As `KeyValueCache.extend` at the start of a text."""
        self._past.extend(name, key[:, :, self._count :], value[:, :, self._count :])
        return key, value


def _appended(stream: Stream, tokens: Tensor) -> Stream:
    """The stream with tokens `(N, D)` at its end."""
    rows, count = len(stream.hidden), len(tokens)
    added = tokens.to(stream.hidden.dtype).expand(rows, -1, -1)
    mask = stream.mask
    if mask is not None:
        mask = torch.cat([mask, mask.new_ones(rows, count)], dim=1)
    links = tuple(
        torch.cat([states, states.new_zeros(len(states), count, states.shape[-1])], dim=1)
        for states in stream.links
    )
    return replace(stream, hidden=torch.cat([stream.hidden, added], dim=1), mask=mask, links=links)


def _hidden_from_others(inputs: BlockInput, count: int) -> Tokens:
    """The tokens with a mask `(B or 1, 1, queries, T)` in which only the last `count` see the last `count`."""
    tokens, total = inputs.tokens, len(inputs.tokens)
    like = tokens.hidden if tokens.mask is None else tokens.mask
    mask = torch.zeros(1, 1, total, total, dtype=like.dtype, device=like.device)
    mask[..., : total - count, total - count :] = torch.finfo(like.dtype).min
    if tokens.mask is not None:
        mask = torch.minimum(mask, tokens.mask)
    return replace(tokens, mask=mask if inputs.queries is None else mask[..., : inputs.queries, :])
