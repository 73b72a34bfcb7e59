"""METER on image-text pairs: everything that depends on one side only is computed once, not once per pair.

With T texts for each of B images, both encoders run on the distinct texts and on the B images. So do the parts of the
first depth that do not read the other stream: self-attention, the queries of cross-attention, and the keys and values
for the other stream. The rest of the fusion is computed for each pair; its last depth computes only the pooled tokens,
as in training.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from harness.backbones.block import BlockInput, Tokens, run_block
from harness.backbones.meter.block import MeterBlock
from harness.backbones.meter.folded import FoldedMeterBlock
from harness.backbones.pairs import Rows


def first_depth(blocks: nn.ModuleList, tokens: Mapping[str, Tokens], rows: Rows) -> dict[str, Tokens]:
    """The tokens of all pairs after depth 0, from the rows of each stream.

    A block that is not an original one (skipped, wrapped in a prompt, hooked) is run on all pairs.
    """
    depths = len(blocks) // 2
    spread = {name: rows.spread_tokens(name, stream) for name, stream in tokens.items()}
    after: dict[str, Tokens] = {}
    reduced = False
    for name, other, block in (("text", "image", blocks[0]), ("image", "text", blocks[depths])):
        if type(block) not in (MeterBlock, FoldedMeterBlock) or _hooked(block) or reduced:
            output = run_block(block, BlockInput(spread[name], spread[other]))
            after[name] = output.tokens
            if output.context is not None:  # a text layer has reduced the image tokens
                spread[other], reduced = output.context, True
            continue
        assert isinstance(block, MeterBlock | FoldedMeterBlock)
        own = block.attend_to_itself(tokens[name].hidden, tokens[name])
        asked, answered = block.query(own), block.keys_and_values(tokens[other].hidden)
        hidden = block.attend_across(
            rows.of(name, own),
            tuple(rows.of(name, each) for each in asked),
            tuple(rows.of(other, each) for each in answered),
            spread[other].mask,
        )
        after[name] = spread[name].with_hidden(hidden)
    return after


def _hooked(module: nn.Module) -> bool:
    """True if the module has a hook."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
