"""The hooks of third-party methods, from the contract to the record."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from typer.testing import CliRunner

from harness import registry
from harness.backbones.base import Backbone
from harness.backbones.block import BlockInput, BlockOutput, run_block
from harness.cli import app
from harness.config import RunSettings
from harness.config.sources import make_settings
from harness.experiment.build import deployed_model
from harness.experiment.latency import measure_side_by_side
from harness.experiment.plan import Cell, build_cells, open_testbeds
from harness.experiment.runner import run_cells
from harness.records.record import Record
from harness.records.store import WEIGHTS, Store
from harness.report.plots.figures import write_figures
from harness.report.tables import build_tables
from harness.specs import Spec
from methods.base import Decision, Inserted, Method, NoOptions, ParameterGroup, SearchTrainer, Trace, freeze
from tasks.mini.vqa import Sizes, ensure_vqa
from tests.support.reporters import Notes
from tests.support.small_table import texts

EPOCHS, BATCH = 2, 32


class Shift(Inserted):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(width))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.offset


class Shifts(Method[NoOptions]):
    """A trained offset after the feed-forward of the first three blocks."""

    name: ClassVar[str] = "shifts"
    summary: ClassVar[str] = "three offsets"
    source: ClassVar[str] = "this test"

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        freeze(backbone)
        for block in list(backbone.blocks)[:3]:
            block.sequential["mlp"] = Shift(backbone.width)  # type: ignore[operator,index]


def offsets(backbone: Backbone) -> list[Tensor]:
    return [block.sequential["mlp"].offset for block in list(backbone.blocks)[:3]]  # type: ignore[union-attr,index]


@pytest.fixture(scope="module")
def settings_of_one(tmp_path_factory: pytest.TempPathFactory) -> RunSettings:
    root = ensure_vqa(tmp_path_factory.mktemp("data"), sizes=Sizes(60, 2, 6, 2, 6, 2))
    return make_settings(
        methods="classifier",  # of which cells are made with the methods of this file
        tasks="vqa",
        data_root=root,
        epochs=EPOCHS,
        batch_size=BATCH,
        accelerator="cpu",
    )


@pytest.fixture(scope="module")
def testbeds(settings_of_one: RunSettings) -> Any:
    return open_testbeds(settings_of_one)


@pytest.fixture
def cell_of(settings_of_one: RunSettings, testbeds: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The cell of an unregistered method."""

    def make(method: type[Method[Any]]) -> Cell:
        monkeypatch.setattr(registry, "build_method", lambda spec: method())
        asked = settings_of_one.model_copy(update={"methods": (Spec(method.name, {}),)})
        (cell,) = build_cells(asked, testbeds)
        return cell

    return make


def run(cell: Cell, store: Store) -> Record:
    (record,) = run_cells([cell], store, Notes())
    assert record.status == "finished", record.error
    return record


def tuned_offsets(store: Store, record: Record) -> list[Tensor]:
    tuned = load_file(store.folder(record.cell.id) / WEIGHTS)
    return [tuned[name] for name in sorted(tuned) if name.endswith(".offset")]


def steps_of(cell: Cell) -> int:
    examples = len(cell.testbed.data.splits["train"])
    return -(-examples // BATCH)


def test_regularizer_is_called_at_every_step_and_affects_training(cell_of: Any, tmp_path: Path) -> None:
    asked: list[int] = []

    class Towards(Shifts):
        def regularizer(self, backbone: Backbone) -> Tensor:
            asked.append(id(backbone))
            return 1e6 * torch.stack([(each - 1).square().mean() for each in offsets(backbone)]).sum()

    store = Store(tmp_path)
    cell = cell_of(Towards)
    record = run(cell, store)
    # Two steps more on a copy, whose memory is measured.
    assert sorted(asked.count(each) for each in set(asked)) == [2, EPOCHS * steps_of(cell)]
    plain = run(cell_of(Shifts), Store(tmp_path / "plain"))
    assert plain.compute_per_example is None
    towards, away = tuned_offsets(store, record), tuned_offsets(Store(tmp_path / "plain"), plain)
    assert all((offset > 0).all() for offset in towards)
    assert not all((offset > 0).all() for offset in away)


def test_step_count_spans_the_training_and_continues_after_an_interruption(
    cell_of: Any, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    stop_at: list[int] = []

    class Counting(Shifts):
        def before_step(self, step: int, total: int) -> None:
            seen.append((step, total))
            if stop_at and step == stop_at[0]:
                raise KeyboardInterrupt

    cell = cell_of(Counting)
    steps = steps_of(cell)
    total = EPOCHS * steps
    stop_at.append(steps + 1)
    with pytest.raises(KeyboardInterrupt):
        run(cell, Store(tmp_path))
    assert seen == [(step, total) for step in range(steps + 2)]
    seen.clear()
    stop_at.clear()
    run(cell, Store(tmp_path))
    assert seen == [(step, total) for step in range(steps, total)]


def test_a_parameter_group_trains_at_its_own_rate(cell_of: Any, tmp_path: Path) -> None:
    class FirstStays(Shifts):
        def parameter_groups(self, backbone: Backbone) -> Sequence[ParameterGroup]:
            return [ParameterGroup("first", offsets(backbone)[:1], learning_rate_scale=0.0)]  # type: ignore[arg-type]

    store = Store(tmp_path)
    first, *others = tuned_offsets(store, run(cell_of(FirstStays), store))
    assert not first.any()
    assert all(offset.all() for offset in others)


def test_group_with_a_frozen_parameter_fails_the_cell(cell_of: Any, tmp_path: Path) -> None:
    class Wrong(Shifts):
        def parameter_groups(self, backbone: Backbone) -> Sequence[ParameterGroup]:
            return [ParameterGroup("frozen", [next(backbone.blocks[0].parameters())])]

    (record,) = run_cells([cell_of(Wrong)], Store(tmp_path), Notes())
    assert record.status == "failed"
    assert "parameter group 'frozen'" in str(record.error)


@dataclass(frozen=True)
class Sign(Decision):
    """The sign with which the offsets start."""

    sign: int
    losses: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"sign": self.sign}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        return cls(content["sign"])

    @property
    def summary(self) -> str:
        return f"sign {self.sign:+d}"

    def figures(self) -> dict[str, str]:
        return {"sign": str(self.sign)}

    def history(self) -> list[float]:
        return list(self.losses)

    def trace(self) -> Trace:
        return Trace(("minus", "plus"), ((0, 0), self.losses), ("plus" if self.sign > 0 else "minus",))


class Signed(Shifts):
    """Compares two signs on held-out data; training continues with the head trained in the search."""

    name: ClassVar[str] = "signed"
    searches: ClassVar[bool] = True
    Decision: ClassVar[type[Any]] = Sign
    search_epochs: ClassVar[int] = 1
    begun: ClassVar[list[str]] = []

    def search(self, trainer: SearchTrainer) -> Sign:
        super().adapt(trainer.backbone, trainer.generator)
        trainer.train(self.search_epochs, lambda epoch, step: None, lambda epoch, step: None)
        losses = []
        for sign in (-1, 1):
            with torch.no_grad():
                for offset in offsets(trainer.backbone):
                    offset.fill_(float(sign))
            losses.append(-trainer.loss(trainer.held_out_batch(fresh=False)))
        return Sign(1 if losses[1] > losses[0] else -1, tuple(losses))

    def decide(self, decision: Sign) -> None:
        self.sign = decision.sign

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        super().adapt(backbone, generator)
        with torch.no_grad():
            for offset in offsets(backbone):
                offset.fill_(0.1 * self.sign)

    def warm_start(self, backbone: Backbone, searched: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.begun.extend(sorted(name for name in searched if name.endswith(".offset")))
        return dict(searched)


def test_decision_defines_its_record_table_and_figures(cell_of: Any, tmp_path: Path) -> None:
    store = Store(tmp_path)
    cell = cell_of(Signed)
    record = run(cell, store)
    search = record.search
    assert search is not None
    sign = search.decision["sign"]
    assert (search.summary, search.figures) == (f"sign {sign:+d}", {"sign": str(sign)})
    assert (search.warm_start, search.diagram) == (True, None)
    assert len(Signed.begun) == 3
    train = len(cell.testbed.data.splits["train"])
    assert search.training_examples is not None
    assert search.reward_examples is not None
    assert search.training_examples + search.reward_examples == train
    history = store.search_history(record.cell.id)
    assert history is not None
    assert history.trace is not None
    assert history.trace.chosen == (("plus",) if sign == 1 else ("minus",))
    assert history.history == list(history.trace.values[1])
    (table,) = build_tables([record])
    assert "Training starts from the adapters and head that the search trained: signed." in texts(table)
    names = [path.name for path in write_figures(store, tmp_path / "plots")]
    assert "gates-vilt-mini-vqa-signed-seed0.png" in names
    shown = CliRunner().invoke(app, ["show", record.cell.id, "-r", str(tmp_path)])
    assert f": sign {sign:+d}; training began" in re.sub(r"\s+", " ", shown.output)
    tuned = load_file(store.folder(record.cell.id) / WEIGHTS)
    again = deployed_model(cell, tuned, json.loads(json.dumps(search.decision)))
    assert torch.equal(again.backbone.blocks[0].sequential["mlp"].offset, tuned_offsets(store, record)[0])  # type: ignore[union-attr,index]


class ForLongTexts(nn.Module):
    """Runs the block only if the text is long."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.name, self.stream, self.block = block.name, block.stream, block

    def forward(self, inputs: BlockInput) -> BlockOutput:
        return (
            run_block(self.block, inputs) if len(inputs.tokens) > 17 + LONG else inputs.result(inputs.asking)
        )


LONG = 9
"""Tokens; the image has 17."""


class Skipping(Method[NoOptions]):
    name: ClassVar[str] = "skipping"
    summary: ClassVar[str] = "short texts pass by the last block"
    source: ClassVar[str] = "this test"
    dynamic: ClassVar[bool] = True

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        freeze(backbone)
        backbone.blocks[-1] = ForLongTexts(backbone.blocks[-1])


def test_cost_of_a_dynamic_method_is_measured_on_real_examples(cell_of: Any, tmp_path: Path) -> None:
    store = Store(tmp_path)
    cell = cell_of(Skipping)
    record = run(cell, store)
    counts = record.compute_per_example
    assert counts is not None
    examples = cell.testbed.data.splits["test"]
    assert counts.n == len(examples) < 64
    assert counts.p10 <= counts.mean <= counts.p90
    # Tokens of text and image through a block that short texts are spared.
    width, inner = 128, 512
    saved = shortened = 0
    for tokens in cell.testbed.backbone.processor.tokenize([example.text for example in examples]):
        length = len(tokens) + 17
        if len(tokens) <= LONG:
            shortened += 1
            saved += length * (4 * width * width + 2 * width * inner) + 2 * length * length * width
    assert 0 < shortened < len(examples)
    assert counts.untouched_mean - counts.mean == pytest.approx(saved / len(examples))
    (measured,) = measure_side_by_side([cell], store)
    assert [latency.examples for latency in measured.latency] == [counts.n] * 2  # type: ignore[union-attr]
    shown = re.sub(r"\s+", " ", CliRunner().invoke(app, ["show", record.cell.id, "-r", str(tmp_path)]).output)
    assert f"on {counts.n} test examples;" in shown
    assert f"on {counts.n} test examples in turn" in shown
    (table,) = build_tables([measured])
    assert any(note.startswith("The cost of skipping depends on the example") for note in texts(table))
