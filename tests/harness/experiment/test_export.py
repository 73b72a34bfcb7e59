"""Exported weights, loaded into other libraries by the code in their README, give the deployed model's features."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.backbones.vilt.loading import MINI_FOLDER
from harness.config.sources import make_settings
from harness.errors import UserError
from harness.experiment.build import deployed_model
from harness.experiment.evaluate import evaluate_cell
from harness.experiment.export import export_cell
from harness.experiment.plan import build_cells, open_testbeds
from harness.experiment.runner import run_cells
from harness.records.store import WEIGHTS, Store
from tasks.mini.vqa import Sizes, ensure_vqa
from tests.support.reporters import Notes

LABELS = (
    "lora[r=3,alpha=6,targets=query+value+up]",
    "adapter[bottleneck=24]",
    "parallel[bottleneck=16,learn_scale=true]",
    "bitfit",
    "lora[r=2,targets=output+query]",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Any], Path]:
    """A results folder with a cell per label, whose tuned weights are far from their initial values."""
    root = ensure_vqa(tmp_path_factory.mktemp("data"), sizes=Sizes(30, 2, 3, 1, 3, 1))
    settings = make_settings(
        methods=",".join(LABELS),
        tasks="vqa",
        data_root=root,
        epochs=1,
        batch_size=16,
        accelerator="cpu",
    )
    built = build_cells(settings, open_testbeds(settings))
    cells = dict(zip(LABELS, built, strict=True))
    found = Store(tmp_path_factory.mktemp("results"))
    for record in run_cells(list(cells.values()), found, Notes()):
        assert record.status == "finished", record.error
        path = found.folder(record.cell.id) / WEIGHTS
        generator = torch.Generator().manual_seed(0)
        moved = {
            name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in load_file(path).items()
        }
        save_file(moved, path)
    return found, cells, root


def load(folder: Path) -> Any:
    """Run the code in the folder's README; returns its model."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.M | re.S)
    code = re.sub(r"^BASE = .*$", f'BASE = "{MINI_FOLDER}"', code, flags=re.M)
    code = code.replace('Path(".")', f'Path("{folder}")')
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    return names["model"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("label", "form"),
    [*((label, "adapters") for label in LABELS[:3]), (LABELS[0], "peft"), (LABELS[4], "peft")],
)
def test_weights_loaded_by_the_code_in_the_readme_give_the_same_features(
    store: tuple[Store, dict[str, Any], Path], tmp_path: Path, label: str, form: Any
) -> None:
    found, cells, root = store
    if form == "peft":
        pytest.importorskip("peft")
    cell = cells[label]
    export_cell(cell.id, found.root, tmp_path / "out", form, root, None, None)
    ours = deployed_model(cell, load_file(found.folder(cell.id) / WEIGHTS), None).backbone
    inputs = ours.example_inputs(2, 6, (64, 64), torch.Generator().manual_seed(1))
    theirs = load(tmp_path / "out")
    with torch.no_grad():
        expected = ours(inputs)
        features = theirs(input_ids=inputs.input_ids, pixel_values=inputs.pixels).pooler_output
        untouched = cell.testbed.fresh_backbone()(inputs)
    assert (expected - untouched).abs().max() > 1e-2
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    head = load_file(tmp_path / "out" / "head.safetensors")
    assert {name.rsplit(".", 1)[-1] for name in head} == {"weight", "bias"}


def test_methods_without_an_export_format_are_named(
    store: tuple[Store, dict[str, Any], Path], tmp_path: Path
) -> None:
    found, cells, root = store
    by_method = {cell.method().name: cell for cell in cells.values()}
    with pytest.raises(
        UserError, match="the adapters library has no form of the method bitfit; it has forms of lora"
    ):
        export_cell(by_method["bitfit"].id, found.root, tmp_path / "a", "adapters", root, None, None)
    with pytest.raises(UserError, match="the peft library has no form of the method adapter"):
        export_cell(by_method["adapter"].id, found.root, tmp_path / "a", "peft", root, None, None)
    output = next(cell for label, cell in cells.items() if "output" in label)
    with pytest.raises(UserError, match="no LoRA for the attention's output projection"):
        export_cell(output.id, found.root, tmp_path / "b", "adapters", root, None, None)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="not empty; choose another folder"):
        export_cell(output.id, found.root, tmp_path / "c", "peft", root, None, None)


@pytest.mark.parametrize("act", ["export", "evaluate"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, tensor: {name: tensor[:1]}, "do not fit the cell"),
        (lambda name, tensor: {}, "do not fit the cell: KeyError"),
        (lambda name, tensor: {name: tensor, "more": tensor.clone()}, "do not fit the cell: KeyError"),
        (lambda name, tensor: {name: tensor.double()}, "do not fit the cell"),
        (lambda name, tensor: {name: tensor * torch.nan}, "contains NaN or infinity"),
        (None, "no such file; results may be shared without weights"),
    ],
)
def test_tuned_weights_that_are_missing_or_do_not_fit_are_refused(
    store: tuple[Store, dict[str, Any], Path], tmp_path: Path, act: str, change: Any, message: str
) -> None:
    found, cells, root = store
    cell_id = cells[LABELS[0]].id
    shutil.copytree(found.folder(cell_id), tmp_path / "cells" / cell_id)
    path = tmp_path / "cells" / cell_id / WEIGHTS
    tensors = load_file(path)
    path.unlink()
    if change is not None:
        name = min(tensors)
        changed = change(name, tensors.pop(name))
        save_file({**tensors, **changed}, path)
    acts = {
        "export": lambda: export_cell(cell_id, tmp_path, tmp_path / "out", "adapters", root, None, None),
        "evaluate": lambda: evaluate_cell(cell_id, tmp_path, "test", root, None, None, None),
    }
    with pytest.raises(UserError, match=message):
        acts[act]()
    assert not (tmp_path / "out").exists()
