"""Methods of the `adapters` library (Poth et al., EMNLP 2023) by its configuration names.

Bottleneck adapters in series and in parallel, Compacter, LoRA, DoRA, VeRA and (IA)³ work on the backbones
through the library's plug-in interface. What acts on a model's embeddings or its own forward pass does not.
"""

from __future__ import annotations

import importlib
import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from harness.backbones.base import Backbone
from harness.backbones.block import Block
from harness.backbones.inputs import Streams
from harness.errors import UserError, did_you_mean
from methods.base import Method, NoOptions, freeze

Override = str | int | float | bool

ADAPTER = "petl"
"""Name of the added adapter, by which its modules are found in the module tree."""

INTERFACES: dict[str, dict[str, str | None]] = {
    "ViltModel": {
        "model_embeddings": "embeddings",
        "model_layers": "encoder.layer",
        "layer_self_attn": "attention",
        "layer_cross_attn": None,
        "attn_q_proj": "attention.query",
        "attn_k_proj": "attention.key",
        "attn_v_proj": "attention.value",
        "attn_o_proj": "output.dense",
        "layer_intermediate_proj": "intermediate.dense",
        "layer_output_proj": "output.dense",
        "layer_pre_self_attn": "layernorm_before",
        "layer_pre_ffn": "layernorm_after",
        # Left out on purpose: given these, the library hands every layer the last layer's norm (1.3.0).
        "layer_ln_1": None,
        "layer_ln_2": None,
    },
    "MeterModel": {
        "model_embeddings": "text_encoder.embeddings",
        "model_layers": "layers",
        "layer_self_attn": "attention",
        "layer_cross_attn": "crossattention",
        "attn_q_proj": "self.query",
        "attn_k_proj": "self.key",
        "attn_v_proj": "self.value",
        "attn_o_proj": "output.dense",
        "layer_intermediate_proj": "intermediate.dense",
        "layer_output_proj": "output.dense",
        # A post-norm sublayer's residual stream is what its first projection reads.
        "layer_pre_self_attn": "attention.self.query",
        "layer_pre_ffn": "intermediate.dense",
        "layer_ln_1": None,
        "layer_ln_2": None,
    },
}
"""The library's plug-in interface by the class of `backbone.model`."""

WORKING = ("bottleneck", "lora")
"""Kinds of configuration that work outside a model's own forward pass."""


class AdaptersMethod(Method[NoOptions]):
    """Any of the library's configurations that works on the backbone, with overrides of its settings.

    Raises:
        UserError: no such configuration, or one that cannot work here; no such setting.
    """

    summary: ClassVar[str] = "a configuration of the adapters library"
    source: ClassVar[str] = "adapters library, Poth et al., EMNLP 2023"
    learning_rate_scale: ClassVar[float] = 5.0

    def __init__(self, config_name: str, overrides: Mapping[str, Override] | None = None) -> None:
        super().__init__(NoOptions())
        self.name = config_name  # type: ignore[misc]
        self.summary = f"'{config_name}' of the adapters library"  # type: ignore[misc]
        self.settings = load_configuration(config_name, overrides or {})

    def config(self) -> dict[str, Any]:
        """The library's configuration with all its settings."""
        return dict(self.settings.to_dict())

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Let the library insert its modules, its random draws seeded from `generator`.

        Raises:
            UserError: the backbone has no plug-in interface, or the library refuses the configuration.
        """
        freeze(backbone)
        model: Any = getattr(backbone, "model", None)
        interface = INTERFACES.get(type(model).__name__)
        if interface is None:
            raise UserError(
                f"{self.name}: the adapters library has no plug-in interface for {backbone.name}; "
                f"it works on: {', '.join(INTERFACES)}."
            )
        adapters = load_library()
        seed = int(torch.randint(2**62, (), generator=generator))
        kinds = adapters.AdapterMethod.get_from_config(self.settings)
        if "bottleneck" in kinds:
            # Given it, the library puts cross-attention's adapter where self-attention's was (1.3.0).
            interface = {**interface, "layer_cross_attn": None}
        plug_in = adapters.AdapterModelInterface(adapter_methods=kinds, **interface)
        with quietly(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                adapters.init(model, interface=plug_in)
                model.add_adapter(ADAPTER, config=self.settings)
            except (ValueError, KeyError, TypeError, AttributeError, AssertionError, ImportError) as error:
                raise UserError(
                    f"{self.name}: the adapters library refuses these settings ({error})."
                ) from error
            model.set_active_adapters(ADAPTER)
        # As a partial, not a closure, a copy of the backbone runs its own blocks.
        backbone.fuse = partial(_fuse_in_context, backbone)  # type: ignore[method-assign]

    def finalize(self, backbone: Backbone) -> None:
        """Put one plain linear map in the place of each projection with an update, and fold the blocks.

        Bottlenecks stay, and their blocks as they are: the library calls them by hooks, which folding leaves alone.

        The library's own merging leaves the bias as it was, which changes the result of (IA)³ and DoRA
        (1.3.0), so the merged map is read off the adapted one: it is affine, f(x) = W x + b.
        """
        if self.settings.architecture != "lora" or self.settings.use_gating:
            super().finalize(backbone)
            return
        context = importlib.import_module("adapters.context").ForwardContext
        model: Any = backbone.model
        backbone.eval()
        with torch.no_grad(), context(model):
            for block in cast(Iterable[Block], backbone.blocks):
                for role, module in block.projections().items():
                    plain = merged_linear(module)
                    block.set_projection(role, plain)
        model.shared_parameters.clear()
        del backbone.fuse
        super().finalize(backbone)

    def method_modules(self, backbone: Backbone) -> list[nn.Module]:
        """The library files its modules under the adapter's name."""
        return [module for path, module in backbone.named_modules() if path.rsplit(".", 1)[-1] == ADAPTER]


def _fuse_in_context(backbone: Backbone, streams: Streams) -> Tensor:
    """`fuse` inside the context that the library opens in a model's own forward pass.

    Through it parallel adapters get the residual stream, Compacter and VeRA the weights they share.
    """
    context = importlib.import_module("adapters.context").ForwardContext
    with context(backbone.model):
        return type(backbone).fuse(backbone, streams)


def merged_linear(module: Any) -> nn.Linear:
    """A plain map that equals the library's linear layer in evaluation, sharing what is unchanged."""
    plain: nn.Linear = skip_init(  # type: ignore[no-untyped-call]
        nn.Linear, module.in_features, module.out_features, bias=module.bias is not None
    )
    plain.weight, plain.bias = module.weight, module.bias
    if getattr(module, "loras", None):
        unit = torch.eye(module.in_features, dtype=module.weight.dtype, device=module.weight.device)
        responses = module(torch.cat([torch.zeros_like(unit[:1]), unit])[None])[0]
        plain.weight.copy_((responses[1:] - responses[0]).T)
        if plain.bias is not None:
            plain.bias.copy_(responses[0])
    return plain


def load_configuration(name: str, overrides: Mapping[str, Override]) -> Any:
    """The library's configuration `name` with `overrides`, text converted to what the settings hold.

    Raises:
        UserError: no such configuration, or one that cannot work here; no such setting.
    """
    adapters = load_library()
    known = importlib.import_module("adapters.configuration").ADAPTER_CONFIG_MAP
    if name not in known:
        raise UserError(f"The adapters library has no configuration '{name}'.{did_you_mean(name, known)}")
    defaults = known[name].to_dict()
    changes = {}
    for key, value in overrides.items():
        if key not in defaults:
            raise UserError(f"{name}: no setting '{key}'.{did_you_mean(key, defaults)}")
        changes[key] = _convert(value, defaults[key])
    configuration = adapters.AdapterConfig.load(name, **changes)
    failing = sorted(set(adapters.AdapterMethod.get_from_config(configuration)).difference(WORKING))
    if failing:
        raise UserError(
            f"{name}: {', '.join(failing)} of the adapters library does not work on these backbones, whose "
            f"blocks run outside the model's own forward pass. Prompts: shallow_prompt, deep_prompt."
        )
    return configuration


def _convert(value: Override, default: object) -> object:
    """`value` as the library wants it: lists from `q+v`, numbers from text, floats where it asks for them."""
    converted: object = value
    if isinstance(value, str):
        if isinstance(default, list):
            return [_convert(part, None) for part in re.split(r"[+,\s]+", value) if part]
        lowered = value.lower()
        if lowered in ("true", "false"):
            converted = lowered == "true"
        elif re.fullmatch(r"[+-]?\d+", value):
            converted = int(value)
        elif re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", lowered):
            converted = float(value)
    if isinstance(default, float) and type(converted) is int:
        return float(converted)
    return converted


def load_library() -> Any:
    """The `adapters` library."""
    with quietly():
        return importlib.import_module("adapters")


@contextmanager
def quietly() -> Iterator[None]:
    """Deprecations inside the library, and what it logs between two of its steps, are not the user's."""
    log = logging.getLogger("adapters")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
