"""LoRA (Hu et al., ICLR 2022): low-rank updates of frozen projections, merged after training."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.backbones.base import Backbone, HuggingFaceForm
from harness.backbones.block import Block, own_blocks
from harness.errors import UserError, did_you_mean
from methods.base import Inserted, Method, Slot, freeze
from methods.exporting import LOAD_PEFT, NAME, Blocks, export_adapters, load_peft
from methods.option_checks import fraction, module_size, positive


@dataclass(frozen=True)
class LoRAOptions:
    """Options of LoRA.

    r: rank of the update; 4 as in DAS's comparison (0.29 M parameters on METER).
    alpha: the update is scaled by alpha / r; by default alpha = r (a scale of 1).
    targets: projections to update, by the last part of their role (`query`, `key`, `value`, `output`, `up`,
        `down`; in every attention of the block) or by their whole role (`attention.query`).
    dropout: dropout probability of the update's input.
    """

    r: int = 4
    alpha: float | None = None
    targets: tuple[str, ...] = ("query", "value")
    dropout: float = 0.0

    def __post_init__(self) -> None:
        module_size("lora", r=self.r)
        positive("lora", alpha=self.alpha)
        fraction("lora", dropout=self.dropout)
        if not self.targets:
            raise UserError("lora: targets names no projection; give at least one, such as query.")


class LowRankUpdate(Inserted):
    """`scale · B A x`, with A `(r, in)` initialised as the weight of a linear map and B `(out, r)` to 0."""

    def __init__(
        self, inputs: int, outputs: int, rank: int, scale: float, dropout: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, inputs))
        self.B = nn.Parameter(torch.zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.A, a=sqrt(5), generator=generator)
        self.scale = scale
        self.dropout = dropout

    def forward(self, hidden: Tensor, result: Tensor) -> Tensor:
        """`result` `(N, out)` plus the update at `hidden` `(N, in)`."""
        if self.dropout and self.training:
            hidden = F.dropout(hidden, self.dropout)
        # At small widths one addmm is faster than a product, a scaling and a sum.
        return torch.addmm(result, F.linear(hidden, self.A), self.B.t(), alpha=self.scale)

    def delta(self) -> Tensor:
        """The update as one matrix `(out, in)`."""
        return self.scale * (self.B @ self.A)


class LoRALinear(nn.Module):
    """A frozen linear map with a low-rank update. It has the attributes of the linear map that it wraps."""

    def __init__(self, base: nn.Linear, update: LowRankUpdate) -> None:
        super().__init__()
        self.base = base
        self.update = update

    @property
    def weight(self) -> Tensor:
        """The frozen weight, without the update."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        return self.base.bias

    @property
    def in_features(self) -> int:
        """Size of the input."""
        return self.base.in_features

    @property
    def out_features(self) -> int:
        """Size of the output."""
        return self.base.out_features

    def forward(self, hidden: Tensor) -> Tensor:
        """`(…, in)` → `(…, out)`."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        result = self.update(flat, self.base(flat))
        return result.view(*hidden.shape[:-1], -1)  # type: ignore[no-any-return]

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The frozen map, with the update added to its weight in place."""
        self.base.weight.add_(self.update.delta())
        return self.base


class LoRA(Method[LoRAOptions]):
    """Updates of rank r on the projections named in `targets`, in every block."""

    name: ClassVar[str] = "lora"
    summary: ClassVar[str] = "low-rank updates of the query and value projections, merged for inference"
    source: ClassVar[str] = "Hu et al., ICLR 2022"
    family: ClassVar[str] = "low-rank updates"
    Options: ClassVar[type[Any]] = LoRAOptions
    learning_rate_scale: ClassVar[float] = 10.0
    per_token: ClassVar[bool] = True
    exports: ClassVar[tuple[str, ...]] = ("adapters", "peft")
    fills: ClassVar[frozenset[Slot] | None] = frozenset({Slot.PROJECTIONS})

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Wrap the target projections.

        Raises:
            UserError: a target matches no projection of any block.
        """
        freeze(backbone)
        options = self.options
        scale = 1.0 if options.alpha is None else options.alpha / options.r
        unmatched = set(options.targets)
        known: set[str] = set()
        for block in cast(Iterable[Block], backbone.blocks):
            for role, base in block.projections().items():
                names = {role, role.rsplit(".", 1)[-1]}
                known |= names
                if names.isdisjoint(options.targets):
                    continue
                unmatched -= names
                update = LowRankUpdate(
                    base.in_features, base.out_features, options.r, scale, options.dropout, generator
                )
                block.set_projection(role, LoRALinear(base, update))
        for target in sorted(unmatched):
            raise UserError(
                f"lora: targets: {backbone.name} has no projection '{target}'.{did_you_mean(target, known)}"
            )

    def merge(self, backbone: Backbone) -> None:
        """Merge every update, and restore the plain linear maps."""
        for block in own_blocks(backbone.blocks):
            for role, module in block.projections().items():
                if isinstance(module, LoRALinear):
                    block.set_projection(role, module.merged())

    def export(self, form: str, target: HuggingFaceForm, blocks: Blocks, output: Path) -> str:
        """Write the updates for `adapters` or `peft`.

        Raises:
            UserError: `adapters` supports no update of the attention's output projection.
        """
        names = next(iter(blocks.values()))
        paths = {role: path for role, path in target.projections.items() if f"{path}.update.A" in names}
        if form == "peft":
            return self._export_peft(target, blocks, list(paths.values()), output)
        return export_adapters(
            target,
            lambda adapters: self._configuration(adapters, list(paths)),
            lambda model: _fill_adapters(model.get_submodule(target.layers), blocks, list(paths.values())),
            output,
        )

    @property
    def _alpha(self) -> float:
        return self.options.r if self.options.alpha is None else self.options.alpha

    def _configuration(self, adapters: Any, roles: list[str]) -> Any:
        """The `adapters` library's configuration."""
        if "attention.output" in roles:
            raise UserError(
                "the adapters library has no LoRA for the attention's output projection; export with "
                "--format peft."
            )
        attention = [role.removeprefix("attention.")[0] for role in roles if role.startswith("attention.")]
        return adapters.LoRAConfig(
            r=self.options.r,
            alpha=self._alpha,
            selfattn_lora=bool(attention),
            attn_matrices=attention,
            intermediate_lora="mlp.up" in roles,
            output_lora="mlp.down" in roles,
        )

    def _export_peft(self, target: HuggingFaceForm, blocks: Blocks, paths: list[str], output: Path) -> str:
        peft = load_peft()
        modules = "|".join(map(re.escape, paths))
        configuration = peft.LoraConfig(
            r=self.options.r,
            lora_alpha=self._alpha,
            target_modules=rf"{re.escape(target.layers)}\.\d+\.({modules})",
        )
        with torch.random.fork_rng(devices=[]):
            wrapped = peft.get_peft_model(target.model, configuration)
        layers = wrapped.base_model.model.get_submodule(target.layers)
        with torch.no_grad():
            for index, tensors in blocks.items():
                for path in paths:
                    layer = layers[index].get_submodule(path)
                    layer.lora_A["default"].weight.copy_(tensors[f"{path}.update.A"])
                    layer.lora_B["default"].weight.copy_(tensors[f"{path}.update.B"])
        wrapped.save_pretrained(str(output))
        return LOAD_PEFT


def _fill_adapters(layers: Any, blocks: Blocks, paths: list[str]) -> None:
    for index, tensors in blocks.items():
        for path in paths:
            update = layers[index].get_submodule(path).loras[NAME]
            update.lora_A.copy_(tensors[f"{path}.update.A"])
            update.lora_B.copy_(tensors[f"{path}.update.B"])
