"""The packages on the pages about a method, a task and a backbone of one's own can be built and run together."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from harness import registry
from harness.backbones.base import BackboneOptions
from harness.backbones.inputs import Inputs
from harness.cli import app
from harness.errors import UserError
from harness.measure.parameters import count_parameters
from harness.records.store import Store
from harness.registry import build_method, resolve_backbone
from harness.specs import Spec
from tests.support.paths import ROOT

PAGES = ("method", "task", "backbone")


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def write_package(name: str, folder: Path) -> Path:
    """Write the files of a page: each code block has a file's name as its title, or continues that file."""
    folder.mkdir()
    for title, code in re.findall(r'^```\w+ title="([\w.]+)[^"]*"\n(.*?)^```$', page(name), re.M | re.S):
        with (folder / title).open("a", encoding="utf-8") as file:
            file.write(f"{code}\n\n")
    return folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The pages' packages, built and installed by pip into a folder on `sys.path`."""
    sources, site = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("site")
    packages = [str(write_package(name, sources / name)) for name in PAGES]
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *packages], check=True)
    sys.path.insert(0, str(site))
    registry._third_parties.cache_clear()
    yield site
    sys.path.remove(str(site))
    registry._third_parties.cache_clear()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images, black or white, and a sentence about each."""
    root = tmp_path_factory.mktemp("data")
    (root / "images").mkdir()
    for split, count in (("train", 8), ("val", 2), ("test", 2)):
        lines = []
        for index in range(count):
            name, white = f"{split}{index}.png", index % 2
            Image.new("RGB", (48, 32), (255 * white,) * 3).save(root / "images" / name)
            answer = "true" if white else "false"
            lines.append({"id": name, "sentence": "it is white", "image": name, "answer": answer})
        (root / f"{split}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return root


def bag(**options: Any) -> Any:
    return resolve_backbone("bag")(BackboneOptions(**options))


@pytest.mark.usefixtures("installed")
def test_the_three_examples_run_together(data: Path, tmp_path: Path) -> None:
    (command,) = re.findall(r"^    harness (run .*) --data-root data/$", page("backbone"), re.MULTILINE)
    arguments = [*command.split(), "--data-root", str(data), "--results", str(tmp_path)]
    outcome = CliRunner().invoke(app, [*arguments, "--in-process", "--epochs", "2", "--batch-size", "4"])
    assert outcome.exit_code == 0, outcome.output
    records = {record.cell.method.name: record for record in Store(tmp_path).records()}
    assert records.keys() == {"shift", "few_shifts", "lora"}
    shift = records["shift"]
    assert shift.parameters is not None
    assert shift.parameters.groups.method == 2 * 32  # an offset for each of the two blocks' sublayers
    assert shift.deployed_parameters is not None
    assert shift.deployed_parameters.groups.method == 0
    assert shift.cell.task.title == "Statements"
    assert shift.compute == records["few_shifts"].compute  # nothing of either is left when they are deployed

    few, search = records["few_shifts"], records["few_shifts"].search
    assert few.parameters is not None
    assert few.parameters.groups.method == 32
    assert search is not None
    (kept,) = search.decision["blocks"]  # type: ignore[misc,union-attr]
    assert search.summary == f"offsets in {kept}"
    assert search.summary in outcome.output
    history = Store(tmp_path).search_history(few.cell.id)
    assert history is not None
    first, second = history.history  # type: ignore[misc]
    assert kept == ("joint.0" if first >= second else "joint.1")  # type: ignore[operator]

    compared = CliRunner().invoke(
        app, ["compare", "shift", "few_shifts", "-r", str(tmp_path), "--metric", "accuracy (true)"]
    )
    assert compared.exit_code == 0, compared.output
    assert "accuracy (true)" in compared.output


@pytest.mark.usefixtures("installed")
def test_finalizing_the_methods_example_keeps_the_outputs() -> None:
    backbone, method = bag(), build_method(Spec("shift", {"scale": "2"}))
    method.adapt(backbone, torch.Generator().manual_seed(0))
    for parameter in method.method_parameters(backbone):
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    inputs = backbone.example_inputs(2, 5, (32, 48), torch.Generator().manual_seed(2))
    before = backbone(inputs)
    method.finalize(backbone)
    assert not method.method_modules(backbone)
    torch.testing.assert_close(backbone(inputs), before)
    with pytest.raises(UserError, match="scale must be more than 0"):
        build_method(Spec("shift", {"scale": "0"}))


@pytest.mark.usefixtures("installed")
def test_padding_changes_nothing_in_the_backbones_example() -> None:
    backbone = bag()
    alone = backbone.example_inputs(1, 4, (32, 32), torch.Generator().manual_seed(0))
    padded = Inputs(
        torch.nn.functional.pad(alone.input_ids, (0, 3)),
        torch.tensor([[True] * 4 + [False] * 3]),
        torch.nn.functional.pad(alone.pixels, (0, 16, 0, 32)),
        torch.tensor([[32, 32]]),
    )
    torch.testing.assert_close(backbone(padded), backbone(alone))
    components = [p for modules in backbone.components().values() for m in modules for p in m.parameters()]
    assert {id(p) for p in components} == {id(p) for p in backbone.parameters()}
    assert len(components) == len(list(backbone.parameters()))
    assert count_parameters(backbone, torch.nn.Linear(32, 2), []).head == 66


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", ["adapter", "parallel", "das", "bitfit", "full"])
def test_built_in_methods_work_on_the_backbones_example(name: str) -> None:
    options = {"blocks": "1"} if name == "das" else {}
    backbone, method = bag(), build_method(Spec(name, options))
    method.adapt(backbone, torch.Generator().manual_seed(0))
    inputs = backbone.example_inputs(2, 5, (32, 48), torch.Generator().manual_seed(2))
    before = backbone(inputs)
    method.finalize(backbone)
    torch.testing.assert_close(backbone(inputs), before)


@pytest.mark.usefixtures("installed")
def test_errors_in_data_of_the_task_example_are_named(data: Path, tmp_path: Path) -> None:
    task = registry.build_task(Spec("statements", {}))
    assert len(task.load(data).splits["train"]) == 8
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.jsonl").write_text(
            '{"id": "1", "sentence": "a", "image": "b", "answer": "?"}\n'
        )
    with pytest.raises(UserError, match=r"train\.jsonl: line 1: answer must be true or false"):
        task.load(tmp_path)
