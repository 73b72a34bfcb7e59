"""LLaMA's decoder layer as a block, and its deployed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from harness.backbones import kernels
from harness.backbones.block import Block, BlockInput, BlockOutput, Causal, Tokens
from harness.backbones.folding import is_hooked, structure_of

ROLES = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
"""Path of each projection within a block, by role."""


class LlavaBlock(Block):
    """A pre-norm decoder layer with causal attention; attribute names are those of `LlamaDecoderLayer`."""

    sublayers: ClassVar[tuple[str, ...]] = ("attention", "mlp")

    def __init__(self, config: LlamaConfig, index: int) -> None:
        super().__init__()
        self.name = f"joint.{index}"
        self.stream = "joint"
        layer = LlamaDecoderLayer(config, index)
        self.self_attn = layer.self_attn
        self.mlp = layer.mlp
        self.input_layernorm = layer.input_layernorm
        self.post_attention_layernorm = layer.post_attention_layernorm
        self.sequential = nn.ModuleDict()
        self.parallel = nn.ModuleDict()
        self.head_size = int(layer.self_attn.head_dim)
        self._built = structure_of(self)

    def forward(self, inputs: BlockInput) -> BlockOutput:
        """`(B, T, D)` → `(B, T, D)`.

        Raises:
            ValueError: there are no positions.
        """
        hidden, maps = inputs.tokens.hidden, self.self_attn
        normed = self.input_layernorm(hidden)
        projected = maps.q_proj(normed), maps.k_proj(normed), maps.v_proj(normed)
        mixed = attend(self.name, projected, self.head_size, inputs.tokens, inputs.causal)
        hidden = close(self, "attention", maps.o_proj(mixed), hidden)
        return inputs.result(close(self, "mlp", self.mlp(self.post_attention_layernorm(hidden)), hidden))

    def projections(self) -> dict[str, nn.Linear]:
        """The seven linear maps of the block by role."""
        return {role: self.get_submodule(path) for role, path in ROLES.items()}  # type: ignore[misc]

    def set_projection(self, role: str, module: nn.Module) -> None:
        """Replace one of the seven maps."""
        self.set_submodule(ROLES[role], module)

    def folded(self) -> nn.Module:
        """The deployed form; the block itself if a projection was replaced or a module has a hook."""
        known = type(self) is LlavaBlock and structure_of(self) == self._built
        return FoldedLlavaBlock(self) if known and not is_hooked(self) else self


class FoldedLlavaBlock(nn.Module):
    """`LlavaBlock` with four products instead of seven: query, key and value in one, gate and up in one.

    The gains of the norms are multiplied into the products after them. Modules in slots are not merged: they read the
    residual stream, which the block's products only read after a norm.
    """

    def __init__(self, block: LlavaBlock) -> None:
        super().__init__()
        self.name, self.stream, self.head_size = block.name, block.stream, block.head_size
        self.sequential, self.parallel = block.sequential, block.parallel
        maps = block.projections()
        roles = ("attention.query", "attention.key", "attention.value")
        self.sizes = tuple(maps[role].out_features for role in roles)
        self.reading = _joined(block.input_layernorm, *(maps[role] for role in roles))
        self.gating = _joined(block.post_attention_layernorm, maps["mlp.gate"], maps["mlp.up"])
        self.attention_output, self.down = maps["attention.output"], maps["mlp.down"]
        self.eps = float(block.input_layernorm.variance_epsilon)
        self.activation: Callable[[Tensor], Tensor] = block.mlp.act_fn

    def forward(self, inputs: BlockInput) -> BlockOutput:
        """`(B, T, D)` → `(B, T, D)`.

        Raises:
            ValueError: there are no positions.
        """
        hidden = inputs.tokens.hidden
        projected = self.reading(self._standardised(hidden)).split(self.sizes, dim=-1)
        mixed = attend(self.name, projected, self.head_size, inputs.tokens, inputs.causal)
        hidden = close(self, "attention", self.attention_output(mixed), hidden)
        gate, up = self.gating(self._standardised(hidden)).chunk(2, dim=-1)
        return inputs.result(close(self, "mlp", self.down(self.activation(gate) * up), hidden))

    def _standardised(self, hidden: Tensor) -> Tensor:
        return F.rms_norm(hidden, hidden.shape[-1:], eps=self.eps)


def close(block: Any, sublayer: str, result: Tensor, residual: Tensor) -> Tensor:
    """The end of a sublayer: slots and residual."""
    if sublayer in block.sequential:
        result = block.sequential[sublayer](result)
    if sublayer in block.parallel:
        result = result + block.parallel[sublayer](residual)
    return residual + result


def attend(
    name: str, projected: tuple[Tensor, ...], head_size: int, tokens: Tokens, causal: Causal | None
) -> Tensor:
    """Causal attention of tokens to themselves and to earlier ones, without the output map: `(B, T, D)`.

    name: the block's name, under which keys and values are cached. projected: queries, keys and values `(B, T, …)`;
    keys and values may have fewer heads than queries (grouped-query attention).

    Raises:
        ValueError: there are no positions.
    """
    if causal is None:
        raise ValueError(f"{name} is a decoder's block: positions are missing")
    query, key, value = (
        states.view(*states.shape[:2], -1, head_size).transpose(1, 2) for states in projected
    )
    query, key = (_rotated(states, causal) for states in (query, key))
    if causal.past is not None:
        key, value = causal.past.extend(name, key, value)
    mixed = kernels.attention(
        query,
        key,
        value,
        tokens.mask,
        is_causal=tokens.mask is None and query.shape[2] > 1,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return mixed.transpose(1, 2).flatten(2)


def _rotated(states: Tensor, causal: Causal) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    return states * causal.cosines + torch.cat([-second, first], dim=-1) * causal.sines


def _joined(norm: LlamaRMSNorm, *maps: nn.Linear) -> nn.Linear:
    """Several maps of a norm's output as one, with the norm's gain merged into it."""
    weight = torch.cat([each.weight for each in maps])
    joined = nn.Linear(weight.shape[1], weight.shape[0], bias=maps[0].bias is not None, device="meta")
    gained = weight.float() * norm.weight.float()
    joined.weight = nn.Parameter(gained.to(weight.dtype), requires_grad=False)
    if maps[0].bias is not None:
        joined.bias = nn.Parameter(torch.cat([each.bias for each in maps]), requires_grad=False)
    return joined
