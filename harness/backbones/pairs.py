"""Image-text pairs in which texts and images recur: each once, and which of them a pair reads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.backbones.block import Tokens
from harness.backbones.inputs import Inputs, Streams


@dataclass(frozen=True)
class Rows:
    """Which row of each stream a pair reads: `(pairs,)` int64 by stream."""

    text: Tensor
    image: Tensor

    def of(self, name: str, states: Tensor) -> Tensor:
        """`states` `(rows, …)` of stream `name`, "text" or "image", one row a pair: `(pairs, …)`."""
        return states.index_select(0, self.text if name == "text" else self.image)

    def spread_tokens(self, name: str, tokens: Tokens) -> Tokens:
        """Tokens of stream `name` with one row a pair."""
        return replace(
            tokens,
            hidden=self.of(name, tokens.hidden),
            mask=None if tokens.mask is None else self.of(name, tokens.mask),
        )

    def spread(self, streams: Streams) -> Streams:
        """Streams with one row a pair."""
        return {
            name: replace(
                stream,
                hidden=self.of(name, stream.hidden),
                mask=None if stream.mask is None else self.of(name, stream.mask),
            )
            for name, stream in streams.items()
        }


def distinct_rows(inputs: Inputs) -> tuple[Inputs, Rows]:
    """The inputs with every text once, and which of its rows each pair reads."""
    ids, mask = inputs.input_ids, inputs.text_mask
    # Padding is not a token that a tokenizer could give: -1 keeps masked rows apart from unmasked ones.
    told_apart = ids if mask is None else ids.masked_fill(~mask, -1)
    unique, text = torch.unique(told_apart, dim=0, return_inverse=True)
    places = torch.empty(len(unique), dtype=torch.long, device=ids.device)
    places[text] = torch.arange(len(text), device=ids.device)
    images = torch.arange(inputs.pixels.shape[0], device=ids.device)
    distinct = replace(inputs, input_ids=ids[places], text_mask=None if mask is None else mask[places])
    return distinct, Rows(text, images.repeat_interleave(inputs.texts_per_image))
