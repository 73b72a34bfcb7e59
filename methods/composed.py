"""Methods combined with `+`: `lora+das`, `bitfit+adapter`, `lora+tome`. Each changes another part of the backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from harness.backbones.base import Backbone
from harness.backbones.folding import fold
from harness.errors import UserError
from methods.base import (
    AnyDecision,
    CostCase,
    Memory,
    Method,
    NoOptions,
    ParameterGroup,
    SearchTrainer,
    Slot,
    TrainingPart,
)


@runtime_checkable
class ReducesTokens(Protocol):
    """A method that can reduce tokens without deciding what trains."""

    reduce_tokens: Callable[[Backbone], None]


class Composed(Method[NoOptions]):
    """Several methods in one model, with the parameters of all of them.

    Each member's parameters train with the member's own learning rate. Poolers and token types use the lowest one.
    One member may search. In its search the other members' parameters train too, all at the lowest rate.
    A member that reduces tokens does only that: the other members decide what trains.

    Raises:
        UserError: two members fill the same slot or search, or one cannot be combined.
    """

    family: ClassVar[str] = "combination"

    def __init__(self, members: Sequence[Method[Any]]) -> None:
        super().__init__(NoOptions())
        _check(members)
        self.members = tuple(sorted(members, key=lambda member: member.name))
        self.name = "+".join(member.name for member in self.members)  # type: ignore[misc]
        self.summary = "; ".join(member.summary for member in self.members)  # type: ignore[misc]
        self.source = "; ".join(member.source for member in self.members)  # type: ignore[misc]
        self.per_token = all(member.per_token for member in self.members)  # type: ignore[misc]
        self.dynamic = any(member.dynamic for member in self.members)  # type: ignore[misc]
        self._in_order = sorted(self.members, key=_rank)
        self._trained: Mapping[str, tuple[str, ...]] = {}

    @property
    def learning_rate_scale(self) -> float:  # type: ignore[override]
        """The lowest scale of the members that train something."""
        return min(each.learning_rate_scale for each in self.members if not isinstance(each, ReducesTokens))

    @property
    def _searcher(self) -> Method[Any] | None:
        return next((member for member in self.members if member.searches), None)

    @property
    def searches(self) -> bool:  # type: ignore[override]
        """True if a member searches."""
        return self._searcher is not None

    @property
    def Decision(self) -> type[Any]:  # type: ignore[override] # noqa: N802
        """The same as of the member that searches."""
        return self._searching().Decision

    @property
    def search_epochs(self) -> int:  # type: ignore[override]
        """The same as of the member that searches."""
        return 0 if self._searcher is None else self._searcher.search_epochs

    @property
    def search_holdout(self) -> float:  # type: ignore[override]
        """The same as of the member that searches."""
        return self._searching().search_holdout

    def _searching(self) -> Method[Any]:
        if self._searcher is None:
            raise TypeError(f"{self.name} has no search")
        return self._searcher

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Adapt by one member after the other, and let the parameters of all of them train.

        Raises:
            UserError: two members put something before the first block.
        """
        trained = self._adapt_by(self._in_order, backbone, generator)
        names = {id(parameter): name for name, parameter in backbone.named_parameters()}
        self._trained = {
            member: tuple(names[id(each)] for each in parameters if id(each) in names)
            for member, parameters in trained.items()
        }

    def _adapt_by(
        self, members: Sequence[Method[Any]], backbone: Backbone, generator: torch.Generator
    ) -> dict[str, list[nn.Parameter]]:
        """The parameters that train, by the name of the member."""
        trained: dict[str, list[nn.Parameter]] = {}
        for member in members:
            prompt = backbone.prompt
            if isinstance(member, ReducesTokens):
                member.reduce_tokens(backbone)
                continue
            member.adapt(backbone, generator)
            trained[member.name] = [each for each in backbone.parameters() if each.requires_grad]
            if prompt is not None and backbone.prompt is not prompt:
                raise UserError(f"{self.name}: on {backbone.name} two of these fill {Slot.PROMPT.value}.")
        for parameters in trained.values():
            for parameter in parameters:
                parameter.requires_grad_(True)
        return trained

    def search(self, trainer: SearchTrainer) -> AnyDecision:
        """The search of one member on a backbone that the others have adapted."""
        searcher = self._searching()
        others = [member for member in self._in_order if member is not searcher]
        trained = self._adapt_by(others, trainer.backbone, trainer.generator)
        parameters = [parameter for each in trained.values() for parameter in each]
        return searcher.search(_TrainerOfAll(trainer, parameters, others))

    def decide(self, decision: Any) -> None:
        """Pass the decision to the member that searches."""
        self._searching().decide(decision)

    def warm_start(self, backbone: Backbone, searched: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same as of the member that searches."""
        return self._searching().warm_start(backbone, searched)

    def regularizer(self, backbone: Backbone) -> Tensor | None:
        """The sum of the members' regularizers."""
        found = [term for each in self.members if (term := each.regularizer(backbone)) is not None]
        return torch.stack(found).sum() if found else None

    def weighted_regularizer(self, backbone: Backbone, part: TrainingPart) -> Tensor | None:
        """The sum of the members' weighted regularizers."""
        terms = (each.weighted_regularizer(backbone, part) for each in self.members)
        found = [term for term in terms if term is not None]
        return torch.stack(found).sum() if found else None

    def routes(self, backbone: Backbone, run: Callable[[], object]) -> list[Tensor] | None:
        """The same as of the member that routes, if one does."""
        dynamic = (each for each in self.members if each.dynamic)
        return next((found for each in dynamic if (found := each.routes(backbone, run)) is not None), None)

    def before_step(self, step: int, total: int) -> None:
        """Call `before_step` of every member."""
        for member in self.members:
            member.before_step(step, total)

    def parameter_groups(self, backbone: Backbone) -> Sequence[ParameterGroup]:
        """The members' own groups, and a group for each member with a higher learning rate than the lowest."""
        by_name = dict(backbone.named_parameters())
        groups: list[ParameterGroup] = []
        for member in self.members:
            ratio = member.learning_rate_scale / self.learning_rate_scale
            for group in member.parameter_groups(backbone):
                scale = group.learning_rate_scale * ratio
                groups.append(replace(group, learning_rate_scale=scale))
            grouped = {id(parameter) for group in groups for parameter in group.parameters}
            own = [by_name[name] for name in self._trained.get(member.name, ())]
            rest = [parameter for parameter in own if id(parameter) not in grouped]
            if ratio != 1 and rest:
                groups.append(ParameterGroup(member.name, rest, ratio))
        return groups

    def cost_cases(self, backbone: Backbone) -> Sequence[CostCase]:
        """The cases of the member that searches; a single case if none does."""
        return super().cost_cases(backbone) if self._searcher is None else self._searcher.cost_cases(backbone)

    def merge(self, backbone: Backbone) -> None:
        """Call `merge` of every member, one after the other."""
        for member in self._in_order:
            member.merge(backbone)

    def finalize(self, backbone: Backbone) -> None:
        """Merge, then fold once."""
        self.merge(backbone)
        fold(backbone)

    def method_modules(self, backbone: Backbone) -> list[nn.Module]:
        """The outermost modules of all members."""
        modules = {id(each): each for member in self.members for each in member.method_modules(backbone)}
        inner = {id(part) for each in modules.values() for part in each.modules() if part is not each}
        return [module for key, module in modules.items() if key not in inner]

    def config(self) -> dict[str, Any]:
        """The options of every member, by its name."""
        return {member.name: member.config() for member in self.members}


class _TrainerOfAll:
    """A `SearchTrainer` that also trains the parameters of other methods."""

    def __init__(
        self, trainer: SearchTrainer, parameters: Sequence[nn.Parameter], others: Sequence[Method[Any]]
    ) -> None:
        self._trainer = trainer
        self._parameters = parameters
        self._others = others

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)

    def train(
        self,
        epochs: int,
        before_step: Callable[[int, int], None],
        after_step: Callable[[int, int], None],
        memory: Memory | None = None,
    ) -> None:
        """As `SearchTrainer.train`."""
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        steps = self._trainer.steps_per_epoch

        def before(epoch: int, step: int) -> None:
            for member in self._others:
                member.before_step(epoch * steps + step, epochs * steps)
            before_step(epoch, step)

        self._trainer.train(epochs, before, after_step, memory)


def _check(members: Sequence[Method[Any]]) -> None:
    for member in members:
        if member.fills is None:
            raise UserError(f"{member.name} cannot be combined with other methods.")
    for one, other in combinations(members, 2):
        pair = f"{one.name} and {other.name} cannot be combined"
        if shared := sorted((one.fills or frozenset()) & (other.fills or frozenset()), key=_order.index):
            raise UserError(f"{pair}: both fill {shared[0].value}.")
        if one.searches and other.searches:
            raise UserError(f"{pair}: both search.")
        for searching, beside in ((one, other), (other, one)):
            if searching.searches and (
                type(beside).regularizer is not Method.regularizer
                or type(beside).weighted_regularizer is not Method.weighted_regularizer
            ):
                raise UserError(
                    f"{pair}: the search of {searching.name} does not add a regularizer to the loss."
                )


_order = list(Slot)


def _rank(member: Method[Any]) -> int:
    """Order of members: those that change single weights first, those that replace whole blocks last."""
    return max(map(_order.index, member.fills or ()), default=0)
