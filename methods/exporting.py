"""Tuned weights in the formats of other libraries: `adapters` (LoRA and bottlenecks) and `peft` (LoRA).

A method chooses the library's configuration and copies its tensors into the library's modules. This module creates
and saves them. See `methods.base.Method.export`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from math import nextafter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.backbones.base import HuggingFaceForm
from harness.errors import UserError
from methods.adapters_library import INTERFACES, load_library, quietly

Blocks = Mapping[int, Mapping[str, Tensor]]
"""Tuned tensors by the index of their block and their name in it."""


NAME = "tuned"
"""Name of the adapter in the exported files."""


SUBLAYERS = {"mh_adapter": "attention", "output_adapter": "mlp"}
"""Our sublayers by the `adapters` library's names for where an adapter sits."""


LOAD_ADAPTERS = f"""\
interface = json.loads((FOLDER / "adapter_interface.json").read_text())["interface"]
adapters.init(model, interface=adapters.AdapterModelInterface(**interface))
model.load_adapter(str(FOLDER), load_as="{NAME}", set_active=True)
"""


SET_EPSILON = """\
for module in model.modules():
    if hasattr(module, "adapter_norm_before"):
        module.adapter_norm_before.eps = {eps}
"""
"""Gives the adapters' LayerNorms the epsilon with which they were trained; the library has no setting for it."""


LOAD_PEFT = """\
model = peft.PeftModel.from_pretrained(model, str(FOLDER))
"""


def export_adapters(
    target: HuggingFaceForm,
    configure: Callable[[Any], Any],
    fill: Callable[[Any], None],
    output: Path,
) -> str:
    """Save an adapter of the `adapters` library.

    configure: called with the library; returns the adapter's configuration.
    fill: called with the model; copies the tensors into the adapter's modules.
    Returns the Python code that loads it.
    """
    model = target.model
    interface = INTERFACES[type(model).__name__]
    adapters = load_library()
    with quietly():
        configuration = configure(adapters)
        kinds = adapters.AdapterMethod.get_from_config(configuration)
        with torch.random.fork_rng(devices=[]):
            adapters.init(model, interface=adapters.AdapterModelInterface(adapter_methods=kinds, **interface))
            model.add_adapter(NAME, config=configuration)
        with torch.no_grad():
            fill(model)
        model.save_adapter(str(output), NAME)
    return LOAD_ADAPTERS


def export_bottlenecks(
    target: HuggingFaceForm,
    blocks: Blocks,
    slot: str,
    size: int,
    activation: str,
    scale: float,
    layer_norm: bool,
    output: Path,
) -> str:
    """Save bottleneck adapters after or beside attention and feed-forward for the `adapters` library.

    slot: `sequential` or `parallel`. scale: factor of the result, if none was trained.
    """
    width = int(target.model.config.hidden_size)

    eps = float(target.model.config.layer_norm_eps)

    def configure(adapters: Any) -> Any:
        return adapters.BnConfig(
            mh_adapter=True,
            output_adapter=True,
            reduction_factor=reduction_factor(width, size),
            non_linearity=activation,
            original_ln_before=False,
            original_ln_after=True,
            residual_before_ln=True,
            adapter_residual_before_ln=False,
            ln_before=layer_norm,
            ln_after=False,
            is_parallel=slot == "parallel",
            scaling=1.0,  # ours is folded into the upper projection
        )

    def fill(model: Any) -> None:
        places = [module for module in model.modules() if getattr(module, "location_key", None) in SUBLAYERS]
        for place in places:
            if NAME in getattr(place, "adapters", {}):
                start = f"{slot}.{SUBLAYERS[place.location_key]}."
                ours = {
                    name.removeprefix(start): tensor
                    for name, tensor in blocks[place.layer_idx].items()
                    if name.startswith(start)
                }
                _fill_bottleneck(place.adapters[NAME], ours, scale)

    loading = export_adapters(target, configure, fill, output)
    return loading + SET_EPSILON.format(eps=eps) if layer_norm else loading


def _fill_bottleneck(adapter: Any, ours: Mapping[str, Tensor], scale: float) -> None:
    factor = ours.get("scale", torch.tensor(scale))
    if "norm.weight" in ours:
        _copy(adapter.adapter_norm_before, ours["norm.weight"], ours["norm.bias"])
    (down,) = (layer for layer in adapter.adapter_down if isinstance(layer, nn.Linear))
    _copy(down, ours["down.weight"], ours["down.bias"])
    _copy(adapter.adapter_up, ours["up.weight"] * factor, ours["up.bias"] * factor)


def _copy(module: Any, weight: Tensor, bias: Tensor) -> None:
    module.weight.copy_(weight)
    module.bias.copy_(bias)


def reduction_factor(width: int, size: int) -> float:
    """The reduction factor from which the library, which rounds down, computes `size`."""
    factor = width / size
    while width // factor < size:
        factor = nextafter(factor, 0.0)
    return factor


def load_peft() -> Any:
    """The `peft` library.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise UserError("--format peft needs the extra 'peft': pip install 'petl-harness[peft]'.") from error
