"""Parameters of an adapted backbone and its head, in disjoint groups, each counted once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from harness.backbones.base import Backbone
from harness.backbones.folded import inserted_in
from harness.backbones.four_bits import held_in_four_bits
from harness.measure.errors import MeasurementError


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters by group; every parameter is in exactly one group. Of buffers only a method's are counted.

    backbone_frozen: pretrained, not trained.
    backbone_tuned: pretrained and trained by the method's choice (`full`, `bitfit`), not in `common`.
    common: trained by every method in addition to the head: poolers and token-type embeddings.
    method: added by the method and trained.
    method_frozen: added by the method and never trained (VeRA's shared random matrices). In a finalised model, all
        remaining parameters of the method.
    head: the task's head.
    """

    backbone_frozen: int
    backbone_tuned: int
    common: int
    method: int
    method_frozen: int
    head: int

    @property
    def total(self) -> int:
        """All parameters of backbone and head and the method's buffers; for a finalised model, the deployed ones."""
        return self.backbone + self.method + self.method_frozen + self.head

    @property
    def backbone(self) -> int:
        """The remaining pretrained parameters."""
        return self.backbone_frozen + self.backbone_tuned + self.common

    @property
    def updated(self) -> int:
        """A method's parameters as papers report them: trained by it, without head and `common`.

        Meaningful for the trained model only, before `finalize` merges or folds anything.
        """
        return self.method + self.backbone_tuned

    @property
    def trained(self) -> int:
        """All parameters that the optimiser updates: `updated`, `common` and the head."""
        return self.updated + self.common + self.head


def count_parameters(
    backbone: Backbone, head: nn.Module, method_modules: Sequence[nn.Module]
) -> ParameterCounts:
    """Count the parameters of backbone and head by identity, before or after `finalize`.

    A parameter counts as trained if its `requires_grad` is True. Floating-point buffers of the method, such as random
    matrices, count as parameters that are never trained.

    method_modules: result of `Method.method_modules(backbone)`. A matrix of a folded block may hold weights of backbone
        and method; the part that the block declares as inserted counts for the method.

    Raises:
        MeasurementError: the groups overlap, or do not add up to the parameters of backbone and head.
    """
    inserted = _unique(p for module in method_modules for p in module.parameters())
    common = _unique(backbone.common_parameters())
    of_head = _unique(head.parameters())
    _refuse_overlap({"method": inserted, "common": common, "head": of_head})
    claimed = inserted.keys() | common.keys() | of_head.keys()
    pretrained = [p for key, p in _unique(backbone.parameters()).items() if key not in claimed]
    buffers = _size({id(b): b for m in method_modules for b in m.buffers() if b.is_floating_point()}.values())
    held = held_in_four_bits(backbone)
    folded = inserted_in(backbone, but=method_modules)
    folded_frozen, folded_tuned = (
        _size(view for view in folded if view.requires_grad == tuned) for tuned in (False, True)
    )
    counts = ParameterCounts(
        backbone_frozen=_size(p for p in pretrained if not p.requires_grad) + held - folded_frozen,
        backbone_tuned=_size(p for p in pretrained if p.requires_grad) - folded_tuned,
        common=_size(common.values()),
        method=_size(p for p in inserted.values() if p.requires_grad) + folded_tuned,
        method_frozen=_size(p for p in inserted.values() if not p.requires_grad) + folded_frozen + buffers,
        head=_size(of_head.values()),
    )
    total = held + _size(_unique([*backbone.parameters(), *head.parameters()]).values())
    if counts.total != total + buffers:
        raise MeasurementError(
            f"the groups have {counts.total - buffers:,} parameters, backbone and head have {total:,}: a module of the "
            "method, or one of backbone.common_parameters(), is not part of the backbone"
        )
    return counts


def _unique(parameters: Iterable[nn.Parameter]) -> dict[int, nn.Parameter]:
    return {id(parameter): parameter for parameter in parameters}


def _size(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _refuse_overlap(groups: dict[str, dict[int, nn.Parameter]]) -> None:
    owner: dict[int, str] = {}
    for name, group in groups.items():
        for key, parameter in group.items():
            if key in owner:
                shape = tuple(parameter.shape)
                raise MeasurementError(f"a parameter of shape {shape} is both in {owner[key]} and in {name}")
            owner[key] = name
