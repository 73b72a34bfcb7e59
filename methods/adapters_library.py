"""Methods of the `adapters` library (Poth et al., EMNLP 2023), named as its configurations.

Sequential and parallel bottleneck adapters, Compacter, LoRA, DoRA and (IA)³ work on the backbones through the
library's plug-in interface. Methods that change a model's embeddings or its own forward pass do not.
"""

from __future__ import annotations

import importlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, get_args, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init
from transformers.activations import ACT2FN

from harness.backbones.base import Backbone
from harness.backbones.block import own_blocks
from harness.backbones.inputs import Streams
from harness.errors import UserError, did_you_mean
from methods.base import Method, NoOptions, Slot, freeze
from methods.option_checks import LARGEST, between, fraction, positive, width_divisor

Override = str | int | float | bool

ADAPTER = "petl"
"""Name of the added adapter. Its modules are found in the module tree by this name."""

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
        # Left out on purpose: with these, the library (1.3.0) gives every layer the norm of the last one.
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
        # In a post-norm sublayer the first projection reads the residual stream.
        "layer_pre_self_attn": "attention.self.query",
        "layer_pre_ffn": "intermediate.dense",
        "layer_ln_1": None,
        "layer_ln_2": None,
    },
}
"""The library's plug-in interface by the class of `backbone.model`."""
INTERFACES["AssembledModel"] = INTERFACES["MeterModel"]

CHOICES: dict[str, tuple[str, ...]] = {
    "non_linearity": ("leakyrelu", *ACT2FN),
    "init_weights": ("bert", "mam_adapter", "houlsby", "lora", "ia3"),
    "scaling": ("learned", "channel"),
    "composition_mode": ("add", "scale"),
    "residual_before_ln": ("post_add",),
    "phm_c_init": ("normal", "uniform"),
    "hypercomplex_nonlinearity": ("phm", "glorot-normal", "glorot-uniform", "normal"),
}
"""Texts that a setting may be."""

_WORDS: Mapping[object, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    type(None): "none",
}

WORKING = ("bottleneck", "lora")
"""Kinds of configuration that work without the model's own forward pass."""


class AdaptersMethod(Method[NoOptions]):
    """One of the library's configurations, with overrides of its settings.

    Raises:
        UserError: no such configuration or setting, or a configuration that does not work on these backbones.
    """

    summary: ClassVar[str] = "a configuration of the adapters library"
    source: ClassVar[str] = "adapters library, Poth et al., EMNLP 2023"
    family: ClassVar[str] = "adapters library"
    learning_rate_scale: ClassVar[float] = 5.0
    fills: ClassVar[frozenset[Slot] | None] = frozenset({Slot.PROJECTIONS})
    """For bottlenecks too, which the library calls by hooks on the projections of METER."""

    def __init__(self, config_name: str, overrides: Mapping[str, Override] | None = None) -> None:
        super().__init__(NoOptions())
        self.name = config_name  # type: ignore[misc]
        self.summary = f"'{config_name}' of the adapters library"  # type: ignore[misc]
        self.settings = load_configuration(config_name, overrides or {})

    def config(self) -> dict[str, Any]:
        """The library's configuration with all its settings."""
        return dict(self.settings.to_dict())

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Insert the library's modules; their weights are drawn with a seed from `generator`.

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
        self._check_left_out(len(model.get_submodule(interface["model_layers"])))
        adapters = load_library()
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        kinds = adapters.AdapterMethod.get_from_config(self.settings)
        if "bottleneck" in kinds:
            # With it, the library (1.3.0) puts the cross-attention's adapter in place of the self-attention's.
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
        # A partial, not a closure: a copy of the backbone must run its own blocks.
        backbone.fuse = partial(_fuse_in_context, backbone)  # type: ignore[method-assign]

    def _check_left_out(self, layers: int) -> None:
        for index in self.settings.leave_out:
            if not isinstance(index, int) or not 0 <= index < layers:
                raise UserError(
                    f"{self.name}: leave_out must be layers from 0 to {layers - 1}, joined by '+'; got '{index}'."
                )

    def merge(self, backbone: Backbone) -> None:
        """Replace each updated projection by one plain linear map.

        Blocks with bottlenecks are not folded, because the library calls the bottlenecks by hooks.

        The library's own merging (1.3.0) does not change the bias, which gives wrong results for (IA)³ and DoRA. So
        weight and bias are computed from the outputs of the adapted map, which is affine: f(x) = W x + b.
        """
        if self.settings.architecture != "lora" or self.settings.use_gating:
            return
        context = importlib.import_module("adapters.context").ForwardContext
        model: Any = backbone.model
        backbone.eval()
        with torch.no_grad(), context(model):
            for block in own_blocks(backbone.blocks):
                for role, module in block.projections().items():
                    plain = merged_linear(module)
                    block.set_projection(role, plain)
        model.shared_parameters.clear()
        del backbone.fuse

    def method_modules(self, backbone: Backbone) -> list[nn.Module]:
        """The modules whose name is the adapter's; the library names them so."""
        return [module for path, module in backbone.named_modules() if path.rsplit(".", 1)[-1] == ADAPTER]


def _fuse_in_context(backbone: Backbone, streams: Streams) -> Tensor:
    """`fuse` in the context that the library opens in a model's own forward pass.

    From this context parallel adapters get the residual stream, and Compacter and VeRA their shared weights.
    """
    context = importlib.import_module("adapters.context").ForwardContext
    with context(backbone.model):
        return type(backbone).fuse(backbone, streams)


def merged_linear(module: Any) -> nn.Linear:
    """A plain linear map equal to the library's layer in evaluation mode. It shares unchanged parameters."""
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
    """The library's configuration `name` with `overrides`, whose text is converted to the settings' types.

    Raises:
        UserError: no such configuration or setting, or a configuration that does not work on these backbones.
    """
    adapters = load_library()
    known = importlib.import_module("adapters.configuration").ADAPTER_CONFIG_MAP
    if name not in known:
        raise UserError(f"The adapters library has no configuration '{name}'.{did_you_mean(name, known)}")
    if name == "vera":
        raise UserError(
            "vera of the adapters library trains whole d×d matrices and is not VeRA; use peft:vera."
        )
    defaults = known[name].to_dict()
    changes = {}
    for key, value in overrides.items():
        if key not in defaults:
            raise UserError(f"{name}: no setting '{key}'.{did_you_mean(key, defaults)}")
        changes[key] = _convert(value, defaults[key])
        _check(name, key, changes[key], get_type_hints(type(known[name]))[key])
    configuration = adapters.AdapterConfig.load(name, **changes)
    failing = sorted(set(adapters.AdapterMethod.get_from_config(configuration)).difference(WORKING))
    if failing:
        raise UserError(
            f"{name}: {', '.join(failing)} of the adapters library does not work on these backbones, whose "
            f"blocks run outside the model's own forward pass. Prompts: shallow_prompt, deep_prompt."
        )
    return configuration


def _check(name: str, key: str, value: Any, hint: object) -> None:
    """Check a setting that the library takes as it is; its own messages do not name it.

    hint: the declared type.

    Raises:
        UserError: the value is of another type, or does not fit.
    """
    choices = CHOICES.get(key, ())
    allowed = {float, *get_args(hint)} if key == "alpha" else set(get_args(hint)) or {hint}
    wanted = [word for kind, word in _WORDS.items() if kind in allowed and not (kind is str and choices)]
    kinds = allowed | ({int} if float in allowed else set())
    if isinstance(value, str) and choices:
        fits = str in allowed and value in choices
    else:
        fits = type(value) in kinds or isinstance(value, list)
    if key == "attn_matrices" and not (value and set(value) <= {"q", "k", "v"}):
        raise UserError(
            f"{name}: attn_matrices must be some of q, k, v, joined by '+'; got '{'+'.join(map(str, value))}'."
        )
    if not fits:
        one_of = [f"one of {', '.join(choices)}"] if choices else []
        raise UserError(f"{name}: {key} must be {' or '.join([*one_of, *wanted])}, got '{value}'.")
    if type(value) is bool or not isinstance(value, int | float):
        return
    match key:
        case "reduction_factor":
            width_divisor(name, **{key: value})
        case "r" | "phm_dim" | "phm_rank":
            between(name, 1, LARGEST, **{key: value})
        case "scaling" | "alpha" | "phm_init_range":
            positive(name, **{key: value})
        case "dropout" | "stochastic_depth":
            fraction(name, **{key: value})


def _convert(value: Override, default: object) -> object:
    """`value` converted to the type of `default`: lists from `q+v`, numbers and booleans from text."""
    converted: object = value
    if isinstance(default, list) and not isinstance(value, str):
        return [value]
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
    """Hide the library's deprecation warnings and log messages, which users can do nothing about."""
    log = logging.getLogger("adapters")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
