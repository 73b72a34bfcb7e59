"""RoE's parts in a backbone: routing tokens, and blocks that each example runs or skips."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.backbones.block import BlockInput, BlockOutput, Tokens, run_block
from harness.backbones.folding import Affine, Norm, fold_block, is_hooked
from harness.backbones.inputs import Streams, sent
from methods.base import Inserted
from methods.roe_layouts import Layout
from methods.roe_schedule import Routing

NORMS = ("layernorm_before", "input_layernorm")
"""Attributes under which pre-norm blocks keep the norm of their first sublayer."""


class RoutingTokens(Inserted):
    """The two trained tokens `(2, D)`, for the image and for the text; used as `Backbone.prompt`."""

    def __init__(
        self, width: int, std: float, layout: Layout, routing: Routing, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(2, width).normal_(std=std, generator=generator))
        self.layout = layout
        self.routing = routing

    def forward(self, streams: Streams) -> Streams:
        """Put the tokens into the streams."""
        self.routing.begin(self.training)
        image, text = self.tokens
        return self.layout.place(streams, image, text)


class Router(Inserted):
    """Two logits, for running and for skipping a block, from both routing tokens: `(B, 2 D)` → `(B, 2)`."""

    def __init__(self, affine: nn.Linear) -> None:
        super().__init__()
        self.map = affine

    def forward(self, signals: Tensor) -> Tensor:
        """`(B, 2 D)` → `(B, 2)`."""
        logits: Tensor = self.map(signals)
        return logits


class RoutedShortcut(Inserted):
    """The way past a block: `up(ReLU(down(n)))`, which is added to the stream; n is what its first sublayer reads."""

    def __init__(self, down: nn.Linear, up: nn.Linear) -> None:
        super().__init__()
        self.down = down
        self.up = up

    def forward(self, read: Tensor) -> Tensor:
        """`(…, D)` → `(…, D)`."""
        added: Tensor = self.up(F.relu(self.down(read)))
        return added


@dataclass(frozen=True)
class Standardisation:
    """A norm without gain and offset; `centred`: LayerNorm, otherwise RMSNorm."""

    eps: float
    centred: bool

    def __call__(self, hidden: Tensor) -> Tensor:
        """`(…, D)` → `(…, D)`."""
        if self.centred:
            return F.layer_norm(hidden, hidden.shape[-1:], eps=self.eps)
        return F.rms_norm(hidden, hidden.shape[-1:], eps=self.eps)


class RoutedBlock(nn.Module):
    """A block that each example runs or skips, as the block's router says.

    In training both ways are computed and mixed with the router's weights. In evaluation an example takes only one of
    them: the examples of a batch are grouped, those that run the block go through it together.

    forced: everything runs (True) or skips (False) the block, whatever the router says, to count costs.
    """

    def __init__(
        self,
        block: nn.Module,
        shortcut: RoutedShortcut,
        router: Router,
        layout: Layout,
        routing: Routing,
        index: int,
    ) -> None:
        super().__init__()
        self.name, self.stream = str(block.name), str(block.stream)
        self.block = block
        self.shortcut = shortcut
        self.router = router
        self.layout = layout
        self.routing = routing
        self.index = index
        self.forced: bool | None = None

    def forward(self, inputs: BlockInput) -> BlockOutput:
        """`(B, T, D)` → `(B, queries, D)`."""
        causal = inputs.causal
        past = None if causal is None else causal.past
        if causal is not None and causal.prompt == 0 and past is not None:  # as decided for the prompt
            return inputs.result(self._apart(inputs, past.notes[self.name]))
        logits = self.router(self.read(torch.stack(self.layout.signals(inputs), dim=1)).flatten(1))
        if self.training:
            weights = self.routing.weigh(logits)
            self.routing.note_weights(self.index, weights[:, 1])
            if self.routing.phase.stage == "adapters":  # each example takes one way only
                return inputs.result(self._apart(inputs, weights[:, 0] > 0))
            run, skip = weights.to(inputs.asking.dtype)[:, :, None, None].unbind(1)
            return inputs.result(run * self._run(inputs) + skip * self._skip(inputs.asking))
        if self.forced is None and not logits.is_meta:
            runs = logits[:, 0] >= logits[:, 1]
        else:
            runs = torch.full((len(logits),), self.forced is not False)
        self.routing.note_route(self.index, runs)
        if past is not None:
            past.notes[self.name] = runs
        return inputs.result(self._apart(inputs, runs))

    def read(self, hidden: Tensor) -> Tensor:
        """What the block's first sublayer reads, `(…, D)`: a pre-norm block's normalised states."""
        norm = _first_norm(self.block)
        return hidden if norm is None else norm(hidden)

    def _apart(self, inputs: BlockInput, runs: Tensor) -> Tensor:
        """Examples that run the block `(B,)` go through it together, the others take the shortcut."""
        if bool(runs.all()):
            return self._run(inputs)
        if not bool(runs.any()):
            return self._skip(inputs.asking)
        rows, others = runs.nonzero()[:, 0], (~runs).nonzero()[:, 0]
        order = torch.cat([rows, others]).argsort()
        if runs.device.type == "cpu":
            rows, others, order = (sent(each, inputs.asking.device) for each in (rows, others, order))
        parts = [self._run(inputs, rows), self._skip(inputs.asking[others])]
        dtype = torch.promote_types(parts[0].dtype, parts[1].dtype)
        return torch.cat([part.to(dtype) for part in parts])[order]

    def _run(self, inputs: BlockInput, rows: Tensor | None = None) -> Tensor:
        opened = self.layout.opened(inputs)
        return run_block(self.block, opened if rows is None else _of_rows(opened, rows)).tokens.hidden

    def _skip(self, asking: Tensor) -> Tensor:
        skipped: Tensor = asking + self.shortcut(self.read(asking))
        return skipped

    def folded(self) -> nn.Module:
        """The deployed form: the block's own, and the norm's gain in the maps that read its result."""
        return self if is_hooked(self) else FoldedRoutedBlock(self)


class FoldedRoutedBlock(RoutedBlock):
    """A routed block as it is deployed. Gain and offset of the first norm are in the router and the shortcut."""

    def __init__(self, trained: RoutedBlock) -> None:
        norm = _first_norm(trained.block)
        down, router = trained.shortcut.down, trained.router.map
        self_read: Standardisation | None = None
        if norm is not None:
            gain = norm.weight.detach()
            centred = isinstance(norm, nn.LayerNorm)
            offset = norm.bias.detach() if centred else torch.zeros_like(gain)
            eps = float(norm.eps if centred else norm.variance_epsilon)
            self_read = Standardisation(eps, centred)
            down = _after_norm(down, Norm(gain, offset, eps))
            router = _after_norm(router, Norm(gain.repeat(2), offset.repeat(2), eps))
        super().__init__(
            fold_block(trained.block),
            RoutedShortcut(down, trained.shortcut.up),
            Router(router),
            trained.layout,
            trained.routing,
            trained.index,
        )
        self.forced = trained.forced
        self._standardise = self_read

    def read(self, hidden: Tensor) -> Tensor:
        """The standardised states, `(…, D)`."""
        return hidden if self._standardise is None else self._standardise(hidden)

    def folded(self) -> nn.Module:
        """Itself."""
        return self


def _first_norm(block: nn.Module) -> Any:
    """The norm before a pre-norm block's first sublayer; None in a post-norm block, which reads the stream itself."""
    return next((getattr(block, name) for name in NORMS if hasattr(block, name)), None)


def _after_norm(module: nn.Linear, norm: Norm) -> nn.Linear:
    """A map of a norm's output as a map of the standardised input."""
    merged = Affine.of(module).after_norm(norm)
    result = nn.Linear(module.in_features, module.out_features, device="meta")
    result.weight = nn.Parameter(merged.weight.to(module.weight.dtype), requires_grad=False)
    result.bias = nn.Parameter(merged.bias.to(module.weight.dtype), requires_grad=False)
    return result


def _of_rows(inputs: BlockInput, rows: Tensor) -> BlockInput:
    """The part of a block's input for these rows of the batch."""
    context, causal = inputs.context, inputs.causal
    if causal is not None:
        causal = replace(causal, cosines=causal.cosines[rows], sines=causal.sines[rows])
    return BlockInput(
        _tokens_of_rows(inputs.tokens, rows),
        None if context is None else _tokens_of_rows(context, rows),
        inputs.queries,
        causal,
    )


def _tokens_of_rows(tokens: Tokens, rows: Tensor) -> Tokens:
    mask, sizes = tokens.mask, tokens.sizes
    if mask is not None and len(mask) > 1:
        mask = mask[rows]
    return Tokens(
        tokens.hidden[rows],
        mask,
        tokens.text_length,
        None if sizes is None else sizes[rows],
        tuple(states[rows] for states in tokens.links),
    )
