"""LLaMA's decoder layer with adapters behind its norms, whose attention, or all of it, may be skipped.

DAS and EAS as published for LLaVA and LaVIN, and this harness's EAS on LLaVA, are made of it.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.backbones.block import Block, BlockInput, BlockOutput
from harness.backbones.folding import Affine, Norm, structure_of
from harness.backbones.llava.block import LlavaBlock, attend, close
from methods.decoder_search import Summary
from methods.eas_adapters import InputAdapter, SkipAdapter
from methods.eas_merging import FoldedSkip, merged_projection, without

Unit = Literal["attention", "layer"]


class AdaptedLlavaBlock(LlavaBlock):
    """A layer whose sublayers read their norm's result through `kept[sublayer]`.

    Skipped, with unit `attention`: `x + MLP(g · S(z))`, z the first norm's result, S the adapter `skips["attention"]`
    and g the second norm's gain, which normalises nothing then. With unit `layer`: `x + S(z)`.
    """

    def __init__(
        self,
        block: LlavaBlock,
        kept: dict[str, nn.Module],
        skips: dict[str, nn.Module],
        unit: Unit = "attention",
        summary: Summary = "prompt",
    ) -> None:
        """Takes the modules of `block`, under the same names. What is skipped, and has no adapter in `kept`, leaves."""
        super(Block, self).__init__()  # LlavaBlock's own would draw new weights
        vars(self).update({**vars(block), "_modules": dict(block._modules)})
        self.kept = nn.ModuleDict(kept)
        self.skips = nn.ModuleDict(skips)
        self.unit = unit
        self.summary = summary
        self.skipped = {name for name in skips if name not in kept}
        if self.skipped:
            del self.self_attn
        if self.skipped and unit == "layer":
            del self.mlp, self.post_attention_layernorm

    def forward(self, inputs: BlockInput) -> BlockOutput:
        """`(B, T, D)` → `(B, T, D)`."""
        hidden = inputs.tokens.hidden
        normed = self.input_layernorm(hidden)
        summary = summarise(
            self.name, self.summary if self.training else _in_use(self.summary), normed, inputs
        )
        if self.skipped:
            mixed = _through(self.skips["attention"], normed, summary)
            if self.unit == "layer":
                return inputs.result(hidden + mixed)
            return inputs.result(
                close(self, "mlp", self.mlp(mixed * self.post_attention_layernorm.weight), hidden)
            )
        maps = self.self_attn
        read = _through(self.kept["attention"], normed, summary) if "attention" in self.kept else normed
        projected = maps.q_proj(read), maps.k_proj(read), maps.v_proj(read)
        mixed = attend(self.name, projected, self.head_size, inputs.tokens, inputs.causal)
        hidden = close(self, "attention", maps.o_proj(mixed), hidden)
        read = self.post_attention_layernorm(hidden)
        if "mlp" in self.kept:
            read = _through(self.kept["mlp"], read, summary)
        return inputs.result(close(self, "mlp", self.mlp(read), hidden))

    def projections(self) -> dict[str, nn.Linear]:
        """The layer's linear maps by role; those of a removed attention are missing."""
        roles = ("query", "key", "value", "output")
        found: dict[str, nn.Linear] = {}
        if hasattr(self, "self_attn"):
            paths = ("q_proj", "k_proj", "v_proj", "o_proj")
            found |= {
                f"attention.{role}": getattr(self.self_attn, path)
                for role, path in zip(roles, paths, strict=True)
            }
        if hasattr(self, "mlp"):
            found |= {f"mlp.{role}": getattr(self.mlp, f"{role}_proj") for role in ("gate", "up", "down")}
        return found

    def merged(self) -> nn.Module:
        """The deployed form, if the adapters are linear; else itself, because the experts depend on the example."""
        adapters = [*self.kept.values(), *self.skips.values()]
        if not all(isinstance(each, InputAdapter | SkipAdapter) for each in adapters):
            return self
        if self.skipped:
            return FoldedLlavaSkip(self)
        for role, module in self.projections().items():
            if role not in ("attention.output", "mlp.down"):
                sublayer = role.split(".")[0]
                self.set_projection(role, merged_projection(module, self.kept[sublayer]))
        plain = without(self, LlavaBlock, ("kept", "skips"))
        plain._built = structure_of(plain)
        return plain

    def folded(self) -> nn.Module:
        """Itself: `merged` comes first."""
        return self


class FoldedLlavaSkip(FoldedSkip):
    """A layer without attention as it is deployed; the mean is over the prompt. M is twice the feed-forward's size."""

    offsets: ClassVar[bool] = False

    def __init__(self, block: AdaptedLlavaBlock) -> None:
        like = block.mlp.down_proj.weight
        before, after = _norm(block.input_layernorm), _norm(block.post_attention_layernorm)
        expand = Affine.stack(Affine.of(block.mlp.gate_proj), Affine.of(block.mlp.up_proj))
        adapter: Any = block.skips["attention"]
        super().__init__(block, adapter, before, after, expand, like)
        self.activation = block.mlp.act_fn
        self._hold("down_weight", like, like)

    def forward(self, inputs: BlockInput) -> BlockOutput:
        """`(B, T, D)` → `(B, T, D)`."""
        hidden = inputs.tokens.hidden
        own: dict[str, Tensor] = dict(self.named_parameters())
        normed = F.rms_norm(hidden, hidden.shape[-1:], eps=self.eps)
        mean = F.linear(summarise(self.name, "prompt", normed, inputs), own["context_weight"])
        expanded = F.linear(normed, own["weight"], own["bias"]) + F.linear(mean, own["up_weight"])
        gate, up = expanded.chunk(2, dim=-1)
        return inputs.result(hidden + F.linear(self.activation(gate) * up, own["down_weight"]))


def summarise(name: str, kind: Summary, normed: Tensor, inputs: BlockInput) -> Tensor:
    """The summary `(B, 1, D)` of each example's tokens `(B, T, D)`; of later tokens, that of their prompt.

    Raises:
        ValueError: there are no positions.
    """
    causal, mask = inputs.causal, inputs.tokens.mask
    if causal is None:
        raise ValueError(f"{name} is a decoder's block: positions are missing")
    if causal.prompt == 0 and causal.past is not None:
        return causal.past.notes[name]
    count = normed.shape[1]
    real = torch.ones(len(normed), count, dtype=torch.bool, device=normed.device)
    if mask is not None:
        real = (mask[:, 0, -1] == 0).expand(len(normed), -1)  # the last token sees all but padding
    if kind == "first":
        found = normed[torch.arange(len(normed), device=normed.device), real.int().argmax(dim=1)][:, None]
    else:
        last = count if causal.prompt is None or kind == "all" else causal.prompt
        weights = (real & (torch.arange(count, device=normed.device) < last)).to(normed.dtype)[..., None]
        found = (normed * weights).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True)
    if causal.past is not None:
        causal.past.notes[name] = found
    return found


def _in_use(kind: Summary) -> Summary:
    """In evaluation there is nothing behind the prompt that may be read."""
    return "prompt" if kind == "all" else kind


def _through(adapter: nn.Module, hidden: Tensor, summary: Tensor) -> Tensor:
    if isinstance(adapter, InputAdapter):
        return adapter(hidden)  # type: ignore[no-any-return]
    if isinstance(adapter, SkipAdapter):
        return hidden + adapter.with_mean(hidden, summary)
    return adapter(hidden, summary)  # type: ignore[no-any-return]


def _norm(module: Any) -> Norm:
    """An RMSNorm, which has no offset."""
    gain = module.weight.detach().to(torch.promote_types(module.weight.dtype, torch.float32))
    return Norm(gain, torch.zeros_like(gain), float(module.variance_epsilon))
