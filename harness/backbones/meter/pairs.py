"""METER on image-text pairs: what depends on one side only is computed once, not once a pair.

With T texts for each of B images, both encoders run on the distinct texts and on the B images, and so do the
parts of the first depth that do not read the other stream: self-attention, the queries of cross-attention,
and the keys and values that each stream gives the other. The rest of the fusion is the pairs' own; its last depth
computes the pooled tokens alone, as in training.
"""

from __future__ import annotations

from torch import nn

from harness.backbones.inputs import Stream, Streams
from harness.backbones.masks import additive_mask
from harness.backbones.meter.block import MeterBlock
from harness.backbones.pairs import Rows


def first_depth(blocks: nn.ModuleList, streams: Streams, rows: Rows) -> Streams:
    """States of all pairs after depth 0, from the rows of each stream.

    A block that is not METER's own any more (skipped, wrapped in a prompt, hooked) is run on all pairs.
    """
    masks = {name: additive_mask(stream.mask, stream.hidden) for name, stream in streams.items()}
    depths = len(blocks) // 2
    after: Streams = {}
    for name, other, block in (
        ("text", "image", blocks[0]),
        ("image", "text", blocks[depths]),
    ):
        own_mask, other_mask = masks[name], masks[other]
        spread_mask = None if other_mask is None else rows.of(other, other_mask)
        if type(block) is MeterBlock and not _hooked(block):
            own = block.attend_to_itself(streams[name].hidden, own_mask)
            key, value = block.keys_and_values(streams[other].hidden)
            hidden = block.attend_across(
                rows.of(name, own),
                rows.of(name, block.query(own)),
                rows.of(other, key),
                rows.of(other, value),
                spread_mask,
            )
        else:
            hidden = block(
                rows.of(name, streams[name].hidden),
                None if own_mask is None else rows.of(name, own_mask),
                rows.of(other, streams[other].hidden),
                spread_mask,
            )
        mask = streams[name].mask
        after[name] = Stream(hidden, None if mask is None else rows.of(name, mask))
    return after


def _hooked(module: nn.Module) -> bool:
    """Whether somebody waits for the module itself to be called."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
