"""Export tuned weights in the formats of other libraries, for the backbone's form in Hugging Face's library.

The method writes its own part (`Method.export`). Poolers, token types and the task's head, which every method trains,
are not part of these formats and are written to separate files. The folder's README contains the code that loads all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from safetensors.torch import save
from torch import Tensor

from harness.backbones.base import HuggingFaceForm
from harness.errors import UserError
from harness.experiment.reload import cell_of, deployed, tuned_weights
from harness.files import make_folder, write_atomically
from harness.records.record import Record
from harness.records.store import Store
from harness.registry import names, resolve_method

Form = Literal["adapters", "peft"]


COMMON, HEAD = "common.safetensors", "head.safetensors"


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
        UserError: the cell has not finished, its method or backbone has no such form, its weights are missing or do
            not fit, or the folder is not empty.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: exists and is not empty; choose another folder.")
    store = Store(results)
    record = store.find(prefix)
    tuned = tuned_weights(store, record)
    if form not in resolve_method(record.cell.method.name).exports:
        known = [name for name in names("methods") if form in resolve_method(name).exports]
        raise UserError(
            f"cell {record.cell.id}: the {form} library has no form of the method {record.cell.method.name}; "
            f"it has forms of {', '.join(known)}."
        )
    cell = cell_of(record, data_root, weights, tokenizer)
    target = cell.testbed.backbone.hugging_face_form()
    if target is None:
        raise UserError(
            f"cell {record.cell.id}: {record.cell.backbone.name} has no counterpart in Hugging Face's library."
        )
    model_class = type(target.model).__name__
    deployed(cell, store, record, tuned)  # raises if the weights do not fit
    make_folder(output)
    blocks, common, head = _parts(tuned, target.layers)
    loading = cell.method().export(form, target, blocks, output)
    for file, tensors in ((COMMON, common), (HEAD, head)):
        write_atomically(output / file, save(tensors))
    write_atomically(output / "README.md", _readme(record, form, target, model_class, loading).encode())


def _parts(
    tuned: Mapping[str, Tensor], layers: str
) -> tuple[dict[int, dict[str, Tensor]], dict[str, Tensor], dict[str, Tensor]]:
    """The tuned tensors of each block, of the rest of the backbone, and of the head, by name within the part."""
    of_a_block = re.compile(rf"backbone\.model\.{re.escape(layers)}\.(\d+)\.(.*)")
    blocks: dict[int, dict[str, Tensor]] = {}
    common: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    for name, tensor in tuned.items():
        if match := of_a_block.fullmatch(name):
            blocks.setdefault(int(match[1]), {})[match[2]] = tensor
        elif name.startswith("head."):
            head[name.removeprefix("head.")] = tensor.contiguous()
        elif name.startswith("backbone.model."):
            common[name.removeprefix("backbone.model.")] = tensor.contiguous()
    return blocks, common, head


def _readme(record: Record, form: Form, target: HuggingFaceForm, model_class: str, loading: str) -> str:
    cell = record.cell
    return f"""\
# {cell.method.label} on {cell.task.name}, seed {cell.seed}

Tuned weights of cell {cell.id}, for the `{form}` library on Hugging Face's `{model_class}` with the pretrained
weights of digest {cell.backbone.digest[:16]}.

```python
import json
from pathlib import Path

import {form}
import torch
from safetensors.torch import load_file
{target.imports}

BASE = "{cell.backbone.name}"  # folder or hub id of the pretrained weights
FOLDER = Path(".")

{target.loading}common = load_file(FOLDER / "{COMMON}")
{target.loading_common}{loading}model.eval()
```

`{COMMON}` holds the pooler and the token types, `{HEAD}` the task's head over `pooler_output`: a linear map, LayerNorm,
GELU, a linear map (retrieval: a linear map).
"""
