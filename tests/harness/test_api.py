"""The functions for notebooks: runs like those of the command line, with objects as input and output."""

from __future__ import annotations

import inspect
import linecache
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.figure
import pytest
import torch
from PIL import Image

import harness
from harness import api
from harness.backbones.base import Backbone
from harness.config import RunSettings
from harness.config.declared import SETTINGS
from harness.config.sources import make_settings
from harness.errors import UserError
from harness.experiment.workers import tied_to_this_process
from harness.records.store import Store
from harness.results import COSTS, Results
from methods.base import Inserted, Method, freeze
from methods.classifier import Classifier
from methods.lora import LoRA, LoRAOptions
from tasks.mini.vqa import Sizes, ensure_vqa
from tests.support.paths import ROOT
from tests.support.stored_results import make_record, store_scores


class Shift(Inserted):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.offset = torch.nn.Parameter(torch.zeros(width))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.offset


class Shifting(Method[Any]):
    """An unregistered method."""

    name, summary, source = "shifting", "an offset after each sublayer", "this test"

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        freeze(backbone)
        for block in backbone.blocks:
            for sublayer in block.sublayers:  # type: ignore[union-attr]
                block.sequential[sublayer] = Shift(backbone.width)  # type: ignore[index,operator]


def define_in_notebook(code: str) -> type[Method[Any]]:
    """The class `Here` as a notebook defines it: in `__main__`, with its source only in `linecache`."""
    space = vars(sys.modules["__main__"])
    space["Shifting"] = Shifting
    linecache.cache["<cell>"] = (len(code), None, code.splitlines(keepends=True), "<cell>")
    exec(compile(code, "<cell>", "exec"), space)
    return space["Here"]  # type: ignore[no-any-return]


Here = define_in_notebook(
    """
class Here(Shifting):
    name = "here"

    def adapt(self, backbone, generator):
        super().adapt(backbone, generator)
"""
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_vqa(tmp_path_factory.mktemp("data"), sizes=Sizes(60, 2, 3, 1, 3, 1))


def common(data: Path, results: Path, **more: Any) -> dict[str, Any]:
    chosen = {"data_root": data, "results": results, "epochs": 1, "batch_size": 16, "accelerator": "cpu"}
    return {"tasks": "vqa", "progress": False, **chosen, **more}


@pytest.fixture(scope="module")
def made(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A run of a method by name, one as an object, and one that other processes cannot import."""
    methods = ["classifier", LoRA(LoRAOptions(r=2)), Here()]
    return api.run(methods=methods, **common(data, tmp_path_factory.mktemp("results")))


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = {"torch", "pandas", "pydantic", "matplotlib", "typer", "rich", "numpy", "PIL"}
    script = f"import harness, sys; dir(harness); print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_package_exports_the_names_of_the_api() -> None:
    for name in harness.__all__:
        assert name in dir(harness)
        assert getattr(harness, name) is not None
    stub = (ROOT / "harness" / "__init__.pyi").read_text()
    assert {name for name in harness.__all__ if f" {name} as {name}" not in stub} == {"__version__"}
    with pytest.raises(AttributeError, match="no attribute 'rum'"):
        harness.rum  # noqa: B018
    assert inspect.signature(harness.run).parameters.keys() >= SETTINGS.keys()


def test_methods_run_by_name_and_as_objects_and_in_one_process_if_defined_in_a_notebook(
    made: Results,
) -> None:
    assert [record.cell.method.label for record in made.records] == ["classifier", "lora[r=2]", "here"]
    assert not made.failed
    here = made.records[-1]
    assert here.parameters is not None
    assert here.parameters.groups.method == 2 * 12 * 128  # an offset after each of 12 blocks' two sublayers
    assert here.cell.code["method"]
    assert all(record.latency for record in made.records)


def test_results_as_a_frame_a_table_a_test_and_figures(made: Results, tmp_path: Path) -> None:
    frame = made.to_pandas().set_index("method")
    record = made.records[0]
    assert frame.loc["classifier", "score"] == record.primary
    assert frame.loc["lora[r=2]", "updated_parameters"] == made.records[1].parameters.updated  # type: ignore[union-attr]
    assert frame.loc["here", "cell"] == made.records[2].cell.id
    assert frame["latency_p50_ms_batch_1"].gt(0).all()
    assert "| lora[r=2] " in made.table()
    assert "\\toprule" in made.table("latex")
    assert "<table>" in made._repr_html_()
    assert "here" in made._repr_html_()
    assert "3 cells; classifier, lora[r=2], here" in repr(made)
    figures = made.plot()
    assert all(isinstance(figure, matplotlib.figure.Figure) for figure in figures.values())
    assert figures._repr_html_().count("data:image/png;base64,") == len(figures) > 0
    assert {path.suffix for path in figures.save(tmp_path)} == {".png", ".svg"}


def test_frame_has_all_columns_if_every_cell_failed(tmp_path: Path) -> None:
    bare = dict.fromkeys(("parameters", "compute", "memory", "training", "tuned_file_bytes"))
    record = make_record(status="failed", error="out of memory", metrics={}, latency=[], **bare)
    results = Results(Store(tmp_path), (record,))
    assert results.failed == (record,)
    (row,) = results.to_pandas().to_dict("records")
    assert (row["status"], row["error"], row["score"]) == ("failed", "out of memory", None)
    assert {name: row[name] for name in COSTS} == dict.fromkeys(COSTS)


def test_two_methods_are_compared_on_the_given_records(tmp_path: Path) -> None:
    scores = {("lora", 0): [1.0] * 40, ("full", 0): [0.0, 1.0] * 20, ("das", 0): [0.0] * 40}
    store = store_scores(tmp_path, scores)
    results = api.load_results(tmp_path)
    (row,) = results.compare("lora", "full").to_dict("records")
    assert row["difference"] == 50.0
    assert row["low"] <= 50.0 <= row["high"]
    assert row["p_value"] < 0.05
    some = Results(store, tuple(r for r in results.records if r.cell.method.label != "das"))
    with pytest.raises(UserError, match="no finished cell of method 'das'"):
        some.compare("lora", "das")


def test_a_run_is_loaded_and_its_cells_are_evaluated_again(made: Results, data: Path) -> None:
    folder = made.store.root
    assert {each.cell.id for each in api.load_results(folder).records} == {
        record.cell.id for record in made.records
    }
    for record in made.records[:2]:
        found = api.evaluate(record.cell.id, folder, data_root=data)
        assert found == record.metrics["test"]
    cell = made.records[2].cell.id
    with pytest.raises(UserError, match="there is no method 'here'"):
        api.evaluate(cell, folder, data_root=data)
    assert api.evaluate(cell, folder, data_root=data, method=Here()) == made.records[2].metrics["test"]
    with pytest.raises(UserError, match="name its folder with data_root"):
        api.evaluate(made.records[0].cell.id, folder)
    with pytest.raises(
        UserError, match=r"^split: must be one of val, test, test-dev2015, test2015; not 'train'"
    ):
        api.evaluate(cell, folder, split="train")


def test_same_call_keeps_finished_cells(made: Results, data: Path) -> None:
    again = api.run(methods=["lora[r=2]", Classifier()], **common(data, made.store.root))
    assert {record.cell.id for record in again.records} == {record.cell.id for record in made.records[:2]}
    assert {r.timestamps.finished for r in again.records} <= {r.timestamps.finished for r in made.records}


def test_run_does_not_change_the_callers_random_state(data: Path, tmp_path: Path) -> None:
    expected = torch.rand(1, generator=torch.Generator().manual_seed(7))
    torch.manual_seed(7)
    api.run(methods=Here(), **common(data, tmp_path, in_process=True))
    assert torch.equal(torch.rand(1), expected)


def test_keywords_override_an_experiment_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "exp.toml"
    file.write_text("[run]\nmethods = 'lora'\ntasks = 'vqa'\nepochs = 3\nseeds = [1, 2]\n")
    seen: list[RunSettings] = []

    def make_plan(settings: RunSettings) -> None:
        seen.append(settings)
        raise UserError("seen")

    monkeypatch.setattr(api, "make_plan", make_plan)
    with pytest.raises(UserError, match="seen"):
        api.run(str(file), epochs=1)
    assert (seen[0].training.epochs, seen[0].seeds) == (1, (1, 2))


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path}: no results in this folder"):
        api.load_results(tmp_path)


@pytest.mark.timeout(600)
def test_a_class_that_can_be_imported_is_sent_to_other_processes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_methods.py").write_text(
        "from methods.classifier import Classifier\n\n\n"
        "class Own(Classifier):\n    name, summary, source = 'own', 'as the classifier', 'a test'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import own_methods  # type: ignore[import-not-found]

    assert tied_to_this_process(make_settings(methods=own_methods.Own(), tasks="vqa")) == []
    results = api.run(methods=own_methods.Own(), **common(data, tmp_path / "results", jobs=1))
    assert [(r.cell.method.label, r.status) for r in results.records] == [("own", "finished")]


def test_method_defined_in_a_notebook_cannot_have_a_timeout(data: Path, tmp_path: Path) -> None:
    class Local(Shifting):
        name = "local"

    with pytest.raises(UserError, match=r"^timeout: local cannot run in a worker process"):
        api.run(methods=Local(), **common(data, tmp_path, timeout=5))
    assert not Store(tmp_path).cells.exists()


def test_an_object_with_another_methods_name_is_refused() -> None:
    class Impostor(Shifting):
        name = "lora"

    with pytest.raises(UserError, match="Impostor calls itself 'lora', which is another method"):
        make_settings(methods=Impostor(), tasks="vqa")


def test_adapted_backbone_trains_in_a_users_own_loop() -> None:
    method = api.build_method("lora[r=2]")
    loaded = api.open_backbone("vilt-mini", text_length=12)
    backbone = api.adapt(loaded, method)
    assert not method.method_modules(loaded)
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    common_ones = {id(parameter) for parameter in backbone.common_parameters()}
    own = {id(parameter) for parameter in method.method_parameters(backbone)}
    assert {id(parameter) for parameter in trained} == common_ones | own
    inputs = api.prepare(
        backbone, ["is it red?", "a much longer question than that"], [Image.new("RGB", (64, 64), "red")] * 2
    )
    optimizer = torch.optim.SGD(trained, lr=0.1)
    target = torch.zeros(2, backbone.feature_dim)
    losses = []
    for _ in range(3):
        losses.append(torch.nn.functional.mse_loss(backbone(inputs), target))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    with torch.no_grad():
        before = backbone(inputs)
        method.finalize(backbone)
        torch.testing.assert_close(backbone(inputs), before)


def test_new_weights_are_a_function_of_the_seed() -> None:
    loaded = api.open_backbone("vilt-mini")
    first, same, other = (api.adapt(loaded, "lora", seed=seed).state_dict() for seed in (0, 0, 1))
    changed = [name for name in first if not torch.equal(first[name], other[name])]
    assert changed
    assert all(torch.equal(first[name], same[name]) for name in first)


def test_prepared_inputs_equal_those_of_the_loader(tmp_path: Path) -> None:
    backbone = api.open_backbone("vilt-mini")
    Image.new("RGB", (96, 64), "blue").save(tmp_path / "a.png")
    inputs = api.prepare(backbone, ["one", "two words"], [tmp_path / "a.png", Image.new("L", (64, 64), 200)])
    assert inputs.input_ids.shape == (2, 4)  # with [CLS] and [SEP]
    assert inputs.text_mask is not None
    assert inputs.text_mask.sum(dim=1).tolist() == [3, 4]
    assert inputs.pixels.shape == (2, 3, 64, 96)
    assert inputs.image_sizes is not None
    assert inputs.image_sizes.tolist() == [[64, 96], [64, 64]]
    with pytest.raises(UserError, match=r"b\.png: no such image"):
        api.prepare(backbone, ["one"], [tmp_path / "b.png"])
    with pytest.raises(ValueError, match="1 texts and 0 images"):
        api.prepare(backbone, ["one"], [])


def test_unsuitable_backbones_and_methods_are_refused() -> None:
    with pytest.raises(UserError, match=r"das\[skip=2\]: searches on a task before it adapts"):
        api.adapt("vilt-mini", "das[skip=2]")
    with pytest.raises(UserError, match=r"^epochs: no such setting"):
        api.adapt("vilt-mini", "lora", epochs=3)
    with pytest.raises(UserError, match=r"^image_size: must be a whole number"):
        api.adapt("vilt-mini", "lora", image_size="big")
    with pytest.raises(UserError, match=r"there is no backbone 'vilt-mino'\. Did you mean 'vilt-mini'"):
        api.open_backbone("vilt-mino")
    with pytest.raises(UserError, match="image_size: applies to a backbone given by name"):
        api.adapt(api.open_backbone("vilt-mini"), "lora", image_size=64)
