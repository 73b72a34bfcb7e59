"""Tuned weights in the formats of other libraries: `adapters` (LoRA, adapters) and `peft` (LoRA).

Both load onto Hugging Face's own `ViltModel`. What every method trains alike, poolers, token types and the task's
head, belongs to no such format and goes beside it; the folder's README is the code that loads it all.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from math import nextafter
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from harness.backbones.vilt.model import TEXT_LAYER_NORM_EPS, ViltBackbone
from harness.errors import UserError
from harness.experiment.plan import Cell
from harness.experiment.reload import cell_of
from harness.files import write_atomically
from harness.records.record import Record
from harness.records.store import WEIGHTS, Store
from methods.adapter import SequentialAdapterOptions
from methods.adapters_library import INTERFACES, _quietly
from methods.bottleneck import bottleneck_size
from methods.lora import LoRAOptions
from methods.parallel import ParallelAdapterOptions

Form = Literal["adapters", "peft"]


NAME = "tuned"
"""Of the adapter in the exported files."""


COMMON, HEAD = "common.safetensors", "head.safetensors"


PATHS = {
    "attention.query": "attention.attention.query",
    "attention.key": "attention.attention.key",
    "attention.value": "attention.attention.value",
    "attention.output": "attention.output.dense",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
}
"""A block's projections by role in Hugging Face's `ViltLayer`."""


SUBLAYERS = {"mh_adapter": "attention", "output_adapter": "mlp"}
"""Our sublayers by the `adapters` library's places."""


_LAYER = re.compile(r"model\.encoder\.layer\.(\d+)\.(.*)")


def export_cell(
    prefix: str,
    results: Path,
    output: Path,
    form: Form,
    data_root: Path | None,
    weights: str | None,
    tokenizer: str | None,
) -> None:
    """Write a finished cell's tuned weights into the folder `output`.

    Raises:
        UserError: the cell has not finished, its method or backbone has no such form, the folder is not empty.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: is there already and not empty; choose another folder.")
    store = Store(results)
    record = store.find(prefix)
    if record.status != "finished":
        raise UserError(f"cell {record.cell.id} has not finished: {record.error}")
    known = ("lora",) if form == "peft" else ("lora", "adapter", "parallel")
    if record.cell.method.name not in known:
        raise UserError(
            f"cell {record.cell.id}: {form} has no form for the method {record.cell.method.name}; "
            f"it has for {', '.join(known)}."
        )
    cell = cell_of(record, data_root, weights, tokenizer)
    tuned = load_file(store.folder(record.cell.id) / WEIGHTS)
    backbone = cell.testbed.backbone
    if not isinstance(backbone, ViltBackbone):
        raise UserError(
            f"cell {record.cell.id}: {record.cell.backbone.name} has no counterpart in Hugging Face's library."
        )
    model = hugging_face_model(backbone)
    output.mkdir(parents=True, exist_ok=True)
    write = _write_peft if form == "peft" else _write_adapters
    write(cell, model, tuned, output)
    prefixes = {"backbone.model.": COMMON, "head.": HEAD}
    for start, file in prefixes.items():
        parts = {
            name.removeprefix(start): tensor.contiguous()
            for name, tensor in tuned.items()
            if name.startswith(start) and not _LAYER.fullmatch(name.removeprefix("backbone."))
        }
        write_atomically(output / file, save(parts))
    write_atomically(output / "README.md", _readme(record, form).encode())


def hugging_face_model(backbone: ViltBackbone) -> Any:
    """Hugging Face's `ViltModel` with the backbone's weights; in evaluation mode."""
    from transformers import ViltModel

    model = ViltModel(backbone.config)
    model.embeddings.text_embeddings.LayerNorm.eps = TEXT_LAYER_NORM_EPS
    model.load_state_dict(backbone.model.state_dict())
    return model.eval()


def _of_blocks(tuned: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """What was tuned in each block, by its name within the block."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tuned.items():
        if match := _LAYER.fullmatch(name.removeprefix("backbone.")):
            found.setdefault(int(match[1]), {})[match[2]] = tensor
    return found


def _roles(blocks: Mapping[int, Mapping[str, Tensor]]) -> list[str]:
    """Projections with an update, by role; the same in every block."""
    names = next(iter(blocks.values()))
    return [role for role, path in PATHS.items() if f"{path}.update.A" in names]


def _write_adapters(cell: Cell, model: Any, tuned: Mapping[str, Tensor], output: Path) -> None:
    blocks = _of_blocks(tuned)
    with _quietly():
        adapters = importlib.import_module("adapters")
        configuration = _configuration(adapters, cell, model, blocks)
        kinds = adapters.AdapterMethod.get_from_config(configuration)
        interface = adapters.AdapterModelInterface(adapter_methods=kinds, **INTERFACES["ViltModel"])
        with torch.random.fork_rng(devices=[]):
            adapters.init(model, interface=interface)
            model.add_adapter(NAME, config=configuration)
        with torch.no_grad():
            _fill_lora(model, blocks) if "lora" in kinds else _fill_bottlenecks(cell, model, blocks)
        model.save_adapter(str(output), NAME)


def _configuration(adapters: Any, cell: Cell, model: Any, blocks: Mapping[int, Mapping[str, Tensor]]) -> Any:
    options = cell.method().options
    if isinstance(options, LoRAOptions):
        roles = _roles(blocks)
        if "attention.output" in roles:
            raise UserError(
                "the adapters library puts no LoRA on attention's output projection; export with "
                "--format peft."
            )
        attention = [role.removeprefix("attention.")[0] for role in roles if role.startswith("attention.")]
        return adapters.LoRAConfig(
            r=options.r,
            alpha=options.r if options.alpha is None else options.alpha,
            selfattn_lora=bool(attention),
            attn_matrices=attention,
            intermediate_lora="mlp.up" in roles,
            output_lora="mlp.down" in roles,
        )
    width = int(model.config.hidden_size)
    parallel = isinstance(options, ParallelAdapterOptions)
    factor = None if parallel else cast(SequentialAdapterOptions, options).reduction_factor
    return adapters.BnConfig(
        mh_adapter=True,
        output_adapter=True,
        reduction_factor=_reduction_factor(width, bottleneck_size(width, options.bottleneck, factor)),
        non_linearity=options.activation,
        original_ln_before=False,
        original_ln_after=True,
        residual_before_ln=True,
        adapter_residual_before_ln=False,
        ln_before=parallel and options.layer_norm,
        ln_after=False,
        is_parallel=parallel,
        scaling=1.0,  # ours is folded into the upper projection
    )


def _reduction_factor(width: int, size: int) -> float:
    """The factor from which the library, which rounds down, gets `size`."""
    factor = width / size
    while width // factor < size:
        factor = nextafter(factor, 0.0)
    return factor


def _fill_lora(model: Any, blocks: Mapping[int, Mapping[str, Tensor]]) -> None:
    for index, tensors in blocks.items():
        for role in _roles(blocks):
            update = model.encoder.layer[index].get_submodule(PATHS[role]).loras[NAME]
            update.lora_A.copy_(tensors[f"{PATHS[role]}.update.A"])
            update.lora_B.copy_(tensors[f"{PATHS[role]}.update.B"])


def _fill_bottlenecks(cell: Cell, model: Any, blocks: Mapping[int, Mapping[str, Tensor]]) -> None:
    options = cell.method().options
    slot = "parallel" if isinstance(options, ParallelAdapterOptions) else "sequential"
    places = [module for module in model.modules() if getattr(module, "location_key", None) in SUBLAYERS]
    for place in places:
        if NAME not in getattr(place, "adapters", {}):
            continue
        start = f"{slot}.{SUBLAYERS[place.location_key]}."
        ours = {
            name.removeprefix(start): tensor
            for name, tensor in blocks[place.layer_idx].items()
            if name.startswith(start)
        }
        scale = ours.get("scale", torch.tensor(getattr(options, "scale", 1.0)))
        adapter = place.adapters[NAME]
        if "norm.weight" in ours:
            _copy(adapter.adapter_norm_before, ours["norm.weight"], ours["norm.bias"])
        (down,) = (layer for layer in adapter.adapter_down if isinstance(layer, nn.Linear))
        _copy(down, ours["down.weight"], ours["down.bias"])
        _copy(adapter.adapter_up, ours["up.weight"] * scale, ours["up.bias"] * scale)


def _copy(module: Any, weight: Tensor, bias: Tensor) -> None:
    module.weight.copy_(weight)
    module.bias.copy_(bias)


def _write_peft(cell: Cell, model: Any, tuned: Mapping[str, Tensor], output: Path) -> None:
    try:
        peft = importlib.import_module("peft")
    except ImportError as error:
        raise UserError("--format peft needs the extra 'peft': pip install 'petl-harness[peft]'.") from error
    options = cast(LoRAOptions, cell.method().options)
    blocks = _of_blocks(tuned)
    paths = [PATHS[role] for role in _roles(blocks)]
    configuration = peft.LoraConfig(
        r=options.r,
        lora_alpha=options.r if options.alpha is None else options.alpha,
        target_modules=rf"encoder\.layer\.\d+\.({'|'.join(map(re.escape, paths))})",
    )
    with torch.random.fork_rng(devices=[]):
        wrapped = peft.get_peft_model(model, configuration)
    with torch.no_grad():
        for index, tensors in blocks.items():
            for path in paths:
                layer = wrapped.base_model.model.encoder.layer[index].get_submodule(path)
                layer.lora_A["default"].weight.copy_(tensors[f"{path}.update.A"])
                layer.lora_B["default"].weight.copy_(tensors[f"{path}.update.B"])
    wrapped.save_pretrained(str(output))


_ADAPTERS_CODE = f"""\
interface = json.loads((FOLDER / "adapter_interface.json").read_text())["interface"]
adapters.init(model, interface=adapters.AdapterModelInterface(**interface))
model.load_adapter(str(FOLDER), load_as="{NAME}", set_active=True)
"""


_PEFT_CODE = """\
model = peft.PeftModel.from_pretrained(model, str(FOLDER))
"""


def _readme(record: Record, form: Form) -> str:
    cell = record.cell
    return f"""\
# {cell.method.label} on {cell.task.name}, seed {cell.seed}

Tuned weights of cell {cell.id}, for the `{form}` library on Hugging Face's `ViltModel` with the pretrained
weights of digest {cell.backbone.digest[:16]}.

```python
import json
from pathlib import Path

import {form}
import torch
from safetensors.torch import load_file
from transformers import ViltModel

BASE = "{cell.backbone.name}"  # folder or hub id of the pretrained weights
FOLDER = Path(".")

model = ViltModel.from_pretrained(BASE, layer_norm_eps=1e-6)
model.embeddings.text_embeddings.LayerNorm.eps = {TEXT_LAYER_NORM_EPS}
common = load_file(FOLDER / "{COMMON}")
types = common["embeddings.token_type_embeddings.weight"]
model.embeddings.token_type_embeddings = torch.nn.Embedding.from_pretrained(types)
model.load_state_dict(common, strict=False)
{_PEFT_CODE if form == "peft" else _ADAPTERS_CODE}model.eval()
```

`{COMMON}` holds the pooler and the token types, `{HEAD}` the task's head over `pooler_output`: a linear map, LayerNorm,
GELU, a linear map (retrieval: a linear map).
"""
