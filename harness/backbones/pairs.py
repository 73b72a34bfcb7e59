"""Image-text pairs that share texts and images: each text and image is computed once, and pairs refer to rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.backbones.block import Tokens
from harness.backbones.inputs import Inputs, Streams, sent


@dataclass(frozen=True)
class Rows:
    """The row of each stream that a pair reads: `(pairs,)` int64 per stream."""

    text: Tensor
    image: Tensor

    def of(self, name: str, states: Tensor) -> Tensor:
        """`states` `(rows, …)` of stream `name` ("text" or "image") with one row per pair: `(pairs, …)`."""
        return states.index_select(0, self.text if name == "text" else self.image)

    def spread_tokens(self, name: str, tokens: Tokens) -> Tokens:
        """Tokens of stream `name` with one row per pair."""
        return replace(
            tokens,
            hidden=self.of(name, tokens.hidden),
            mask=None if tokens.mask is None else self.of(name, tokens.mask),
            links=tuple(self.of(name, states) for states in tokens.links),
        )

    def spread(self, streams: Streams) -> Streams:
        """Streams with one row per pair."""
        return {
            name: replace(
                stream,
                hidden=self.of(name, stream.hidden),
                mask=None if stream.mask is None else self.of(name, stream.mask),
                links=tuple(self.of(name, states) for states in stream.links),
            )
            for name, stream in streams.items()
        }


def distinct_rows(inputs: Inputs) -> tuple[Inputs, Rows]:
    """The inputs with every distinct text once, and the rows that each pair reads.

    On the meta device, where texts have no content, all count as distinct.
    """
    ids, mask, device = inputs.input_ids, inputs.text_mask, inputs.input_ids.device
    images = torch.arange(inputs.pixels.shape[0], device=device).repeat_interleave(inputs.texts_per_image)
    if device.type == "meta" and inputs.host_ids is None:
        return inputs, Rows(torch.arange(len(ids), device=device), images)
    host_ids = inputs.ids_on_host()
    unique, text = torch.unique(host_ids, dim=0, return_inverse=True)
    of_text = torch.empty(len(unique), dtype=torch.long)
    of_text[text] = torch.arange(len(text))
    rows = sent(of_text, device)
    distinct = replace(
        inputs,
        input_ids=ids[rows],
        text_mask=None if mask is None else mask[rows],
        host_ids=host_ids[of_text],
    )
    return distinct, Rows(sent(text, device), images)
