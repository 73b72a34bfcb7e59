"""RoE, routing experts (Wu et al., ICLR 2025, arXiv:2407.14093): each example runs only the blocks it needs.

Every block has a shortcut past it and a router, which reads two trained tokens, one for the image and one for the text.
Training has three stages: shortcuts with random routes, then the routers, then everything. A term of the loss makes the
routers skip a share of the blocks. Written from the paper and its public code, DoubtedSteam/RoE, for LLaVA; the forms
on ViLT and METER are this harness's.

Differences from the public code: inference really skips (the released evaluation runs every layer), and the examples
of a batch are routed one by one. A text has one turn. Of the mixture in training the routes of the first stage, which
are hard, are run as such, with equal results. The image's routing token has position 0 and the text's 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from harness.backbones.base import Backbone
from harness.errors import UserError
from methods.base import CostCase, Decision, Method, ParameterGroup, Slot, TrainingPart, freeze
from methods.option_checks import fraction, module_size, positive
from methods.roe_blocks import RoutedBlock, RoutedShortcut, Router, RoutingTokens
from methods.roe_layouts import CausalLayout, CrossLayout, JoinedLayout, Layout
from methods.roe_schedule import Routing, phase_at
from methods.skipping import skippable_sets


@dataclass(frozen=True)
class RoEOptions:
    """What can be chosen about RoE.

    tune: `petl` trains shortcuts, routers and routing tokens; `full` also the pretrained weights in the last stage, as
        published (LLaVA's image encoder stays frozen).
    bottleneck: hidden size of the shortcuts; by default width / 4 (1,024 at 4,096).
    sparsity: share of blocks to skip, between 0 and 0.5; the loss pushes routers up to this share, not beyond.
    weight: weight of that term of the loss.
    easiness: examples with a low loss are pushed more: the term is multiplied by exp(−easiness · loss); 0 pushes all
        alike. By default 5 on generative backbones, as published, and 0 elsewhere, as losses of classifiers have
        other scales.
    adapter_stage, router_stage: shares of training of the first and the second stage.
    temperature: of the routers' softmax when the second stage begins.
    cooling: factor of the temperature after each 0.5 % of training.
    bias_decay: factor of the bias for running a block after each 0.5 % of training, in the second stage.
    backbone_rate: with `tune=full`, learning rate of the pretrained weights as a multiple of the others'; by default
        0.005 on generative backbones, as published (2e-6 to 4e-4), and 0.2 elsewhere, which is that of full tuning.
    """

    tune: Literal["petl", "full"] = "petl"
    bottleneck: int | None = None
    sparsity: float = 0.3
    weight: float = 1.0
    easiness: float | None = None
    adapter_stage: float = 0.3
    router_stage: float = 0.2
    temperature: float = 10.0
    cooling: float = 0.95
    bias_decay: float = 0.85
    backbone_rate: float | None = None

    def __post_init__(self) -> None:
        module_size("roe", bottleneck=self.bottleneck)
        fraction("roe", adapter_stage=self.adapter_stage, router_stage=self.router_stage)
        positive("roe", temperature=self.temperature, backbone_rate=self.backbone_rate)
        for name in ("sparsity", "weight", "easiness", "cooling", "bias_decay"):
            value = getattr(self, name)
            most = {"sparsity": 0.5, "cooling": 1.0, "bias_decay": 1.0}.get(name, float("inf"))
            if value is not None and not (0 <= value <= most and value < float("inf")):
                limit = f"between 0 and {most:g}" if most < float("inf") else "at least 0"
                raise UserError(f"roe: {name} must be {limit}, got {value}.")
        if self.cooling == 0:
            raise UserError("roe: cooling must be above 0.")
        if self.adapter_stage + self.router_stage >= 1:
            raise UserError(
                f"roe: adapter_stage and router_stage leave nothing of training for the last stage "
                f"({self.adapter_stage} + {self.router_stage})."
            )


@dataclass(frozen=True)
class FixedRoute(Decision):
    """A route that every example takes, for counting costs."""

    skipped: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The skipped blocks."""
        return {"skipped": list(self.skipped)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """From what `to_json` returned."""
        return cls(tuple(content["skipped"]))

    @property
    def summary(self) -> str:
        """`skipped joint.3`."""
        return f"skipped {', '.join(self.skipped) or 'nothing'}"


class RoE(Method[RoEOptions]):
    """Blocks are run or skipped example by example."""

    name: ClassVar[str] = "roe"
    summary: ClassVar[str] = "each example skips the blocks that its routing tokens say; shortcuts past them"
    source: ClassVar[str] = "Wu et al., ICLR 2025"
    family: ClassVar[str] = "block skipping"
    Options: ClassVar[type[Any]] = RoEOptions
    learning_rate_scale: ClassVar[float] = 5.0
    per_token: ClassVar[bool] = True
    dynamic: ClassVar[bool] = True
    fills: ClassVar[frozenset[Slot] | None] = frozenset({Slot.PROMPT, Slot.TOKENS, Slot.BLOCKS})
    Decision: ClassVar[type[Any]] = FixedRoute

    def __init__(self, options: RoEOptions | None = None) -> None:
        super().__init__(options)
        self._routing = Routing()
        self._forced: tuple[str, ...] | None = None
        self._easiness = 0.0

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Put in the routing tokens, and a shortcut and a router at each block."""
        options, width = self.options, backbone.width
        self._routing = Routing()
        generative = _is_generative(backbone)
        default = 5.0 if generative else 0.0
        self._easiness = default if options.easiness is None else options.easiness
        freeze(backbone)
        pretrained = list(_tunable(backbone)) if options.tune == "full" else []
        layout = _layout(backbone)
        for index, block in enumerate(backbone.blocks):
            bottleneck = options.bottleneck or max(1, width // 4)
            down, up = _xavier(width, bottleneck, generator), _xavier(bottleneck, width, generator)
            router = _xavier(2 * width, 2, generator)
            routed = RoutedBlock(
                block, RoutedShortcut(down, up), Router(router), layout, self._routing, index
            )
            if self._forced is not None:
                routed.forced = routed.name not in self._forced
            backbone.blocks[index] = routed
        backbone.prompt = RoutingTokens(width, backbone.initializer_range, layout, self._routing, generator)
        common = {id(each) for each in backbone.common_parameters()}
        for parameter in pretrained:
            parameter.requires_grad_(True)
            if id(parameter) not in common:
                parameter.register_post_accumulate_grad_hook(partial(_drop_early, self._routing))

    def before_step(self, step: int, total: int) -> None:
        """Set the stage, the temperature and the bias."""
        self._routing.phase = phase_at(step, total, self.options)

    def weighted_regularizer(self, backbone: Backbone, part: TrainingPart) -> Tensor | None:
        """Mean over the examples of `weight · exp(−easiness · loss) · max(0, sparsity − share of skipped blocks)`."""
        passes = cast(RoutingTokens, backbone.prompt).routing.skipped()
        if not passes:
            return None
        short = [(self.options.sparsity - skipped).clamp(min=0) for skipped in passes]
        # An example may go through the backbone in several passes (two images) and rows (texts of an image).
        each = torch.stack([rows.view(part.size, -1).mean(dim=1) for rows in short]).mean(dim=0)
        if self._easiness:
            each = each * (-self._easiness * part.losses()).exp()
        return self.options.weight * each.mean()

    def parameter_groups(self, backbone: Backbone) -> Sequence[ParameterGroup]:
        """With `tune=full`, the pretrained weights have a lower rate."""
        if self.options.tune == "petl":
            return ()
        apart = {id(each) for each in [*self.method_parameters(backbone), *backbone.common_parameters()]}
        own = [each for each in backbone.parameters() if each.requires_grad and id(each) not in apart]
        default = 0.005 if _is_generative(backbone) else 0.2
        return (ParameterGroup("pretrained", own, self.options.backbone_rate or default),)

    def routes(self, backbone: Backbone, run: Callable[[], object]) -> list[Tensor]:
        """Which blocks each row ran in the forward passes of `run`."""
        routing = cast(RoutingTokens, backbone.prompt).routing
        routing.watched = []
        try:
            run()
            return [
                torch.stack([found[index].cpu() for index in range(len(backbone.blocks))], dim=1)
                for found in routing.watched
            ]
        finally:
            routing.watched = None

    def decide(self, decision: FixedRoute) -> None:
        """Let every example take this route, for counting costs."""
        self._forced = decision.skipped

    def cost_cases(self, backbone: Backbone) -> Sequence[CostCase]:
        """A route that runs all blocks, and routes that skip the share `sparsity`, by number in each stream."""
        skip = round(self.options.sparsity * len(backbone.block_names))
        cases = [CostCase("all blocks run", FixedRoute(()))]
        for skipped in skippable_sets(skip, backbone) if skip else ():
            streams = [name.split(".")[0] for name in skipped]
            numbers = " + ".join(f"{streams.count(stream)} {stream}" for stream in backbone.stream_names)
            cases.append(CostCase(f"{numbers} skipped", FixedRoute(skipped)))
        return cases


def _is_generative(backbone: Backbone) -> bool:
    # Imported only here: the list of methods should not wait for the backbones.
    from harness.backbones.generative import GenerativeBackbone

    return isinstance(backbone, GenerativeBackbone)


def _layout(backbone: Backbone) -> Layout:
    if len(backbone.stream_names) == 2:
        return CrossLayout()
    return CausalLayout(cast(Any, backbone).image_end) if _is_generative(backbone) else JoinedLayout()


def _tunable(backbone: Backbone) -> Iterator[nn.Parameter]:
    """The pretrained weights that `tune=full` trains."""
    kept: set[int] = set()
    if _is_generative(backbone):
        kept = {id(each) for part in backbone.components()["image encoder"] for each in part.parameters()}
    yield from (each for each in backbone.parameters() if id(each) not in kept)


def _drop_early(routing: Routing, parameter: Tensor) -> None:
    """The pretrained weights train in the last stage only."""
    if routing.phase.stage != "all":
        parameter.grad = None


def _xavier(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear map without biases, with Xavier's uniform weights."""
    module: nn.Linear = skip_init(nn.Linear, inputs, outputs, bias=False)  # type: ignore[no-untyped-call]
    nn.init.xavier_uniform_(module.weight, generator=generator)
    return module
