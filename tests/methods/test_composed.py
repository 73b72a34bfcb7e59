"""Methods combined with `+`: what fits together, order, rates, search, counts, and cells that come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import harness
from harness.api import build_method
from harness.backbones.base import Backbone
from harness.backbones.vilt.folded import FoldedViltBlock
from harness.errors import UserError
from harness.experiment.reproduce import compare, open_cell, run_again
from harness.records.store import Store
from harness.registry import read_specs
from methods.adapter import SequentialAdapter
from methods.base import Method, ParameterGroup
from methods.bitfit import BitFit
from methods.composed import Composed
from methods.das import DAS, DASOptions
from methods.das_decision import DASDecision
from methods.lora import LoRA
from methods.reducing_vilt import FoldedReducingViltBlock
from methods.skipping import SkippedBlock
from methods.tome import Tome
from tasks.mini.vqa import Sizes, ensure_vqa
from tests.support.reporters import Notes
from tests.support.small_vilt import mini

D = 128
LORA = 2 * 4 * 2 * D
"""Parameters of LoRA in a block of the small backbone: rank 4 on query and value."""


def adapted(method: Method[Any]) -> Backbone:
    backbone = mini()
    method.adapt(backbone, torch.Generator().manual_seed(0))
    return backbone


def size(method: Method[Any], backbone: Backbone) -> int:
    return sum(parameter.numel() for parameter in method.method_parameters(backbone))


def trained(backbone: Backbone) -> set[str]:
    return {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def test_order_of_combined_methods_does_not_matter() -> None:
    one, other = (build_method(spec) for spec in ("lora[r=2]+das[skip=1]", "das[skip=1]+lora[r=2]"))
    assert one.name == other.name == "das+lora"
    assert (
        one.config()
        == other.config()
        == {"das": DAS(DASOptions(skip=1)).config(), "lora": {**LoRA().config(), "r": 2}}
    )
    with pytest.raises(UserError, match="appears twice"):
        read_specs("lora+das,das+lora", "methods")


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("lora+dora", "dora and lora cannot be combined: both fill the projections of the blocks."),
        ("seq_bn+par_bn", "par_bn and seq_bn cannot be combined: both fill the projections of the blocks."),
        ("das+parallel", "das and parallel cannot be combined: both fill the slots beside the sublayers."),
        ("tome+deep_prompt", "deep_prompt and tome cannot be combined: both fill the number of tokens"),
        ("full+bitfit", "bitfit and full cannot be combined: both fill the choice of pretrained weights"),
        ("classifier+lora", "classifier cannot be combined with other methods."),
        ("lora+lora[r=8]", "lora cannot be combined with itself."),
        ("lora+lroa", "there is no method 'lroa'. Did you mean 'lora'?"),
        ("+lora", "a name is missing"),
    ],
)
def test_combinations_that_do_not_fit_are_refused_with_the_reason(spec: str, reason: str) -> None:
    with pytest.raises(UserError) as raised:
        build_method(spec)
    assert reason in str(raised.value)


def test_two_methods_before_the_first_block_are_refused_on_the_backbone(make_meter: Any) -> None:
    combined = build_method("das[blocks=text.0]+shallow_prompt[tokens=2]")
    with pytest.raises(UserError, match=r"das\+shallow_prompt: on meter two of these fill the place before"):
        combined.adapt(make_meter(), torch.Generator().manual_seed(0))


def test_combination_trains_the_parameters_of_all_members() -> None:
    biases = {name for name, _ in mini().blocks.named_parameters() if name.endswith("bias")}
    combined = Composed([SequentialAdapter(), BitFit()])
    names = trained(adapted(combined))
    own = {name for name in names if ".sequential." in name}
    assert {name.removeprefix("model.encoder.layer.") for name in names - own} == biases
    assert own == trained(adapted(SequentialAdapter()))


def test_updates_in_skipped_blocks_are_removed() -> None:
    das = DAS(DASOptions(blocks=("3", "7")))
    alone = size(das, adapted(das))
    combined = Composed([LoRA(), das])
    backbone = adapted(combined)
    assert size(combined, backbone) == alone + 10 * LORA
    assert isinstance(backbone.blocks[3], SkippedBlock)


def test_members_train_with_their_own_learning_rates() -> None:
    combined = Composed([BitFit(), SequentialAdapter(), Tome()])
    backbone = adapted(combined)
    assert combined.learning_rate_scale == SequentialAdapter.learning_rate_scale == 5.0
    (group,) = combined.parameter_groups(backbone)
    assert group.learning_rate_scale == BitFit.learning_rate_scale / 5.0
    biases = [p for n, p in backbone.named_parameters() if n.endswith("bias") and ".sequential." not in n]
    in_blocks = {id(p) for p in backbone.blocks.parameters()}
    assert {id(p) for p in group.parameters} == {id(p) for p in biases if id(p) in in_blocks}


class Noting(LoRA):
    """LoRA with a regulariser, a step hook and a parameter group."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[int, int]] = []

    def regularizer(self, backbone: Backbone) -> Tensor | None:
        return torch.tensor(2.0)

    def before_step(self, step: int, total: int) -> None:
        self.steps.append((step, total))

    def parameter_groups(self, backbone: Backbone) -> list[ParameterGroup]:
        updates = [p for name, p in backbone.named_parameters() if name.endswith("update.B")]
        return [ParameterGroup("B", updates, 3.0)]


def test_hooks_of_all_members_are_called() -> None:
    one, other = Noting(), Noting()
    other.name = "other"  # type: ignore[misc]
    other.fills = frozenset()  # type: ignore[misc]
    combined = Composed([one, SequentialAdapter(), other])
    combined.before_step(3, 9)
    assert one.steps == other.steps == [(3, 9)]
    assert combined.regularizer(mini()).item() == 4.0  # type: ignore[union-attr]
    assert Composed([BitFit(), SequentialAdapter()]).regularizer(mini()) is None


def test_a_members_own_groups_are_scaled_to_the_lowest_rate() -> None:
    combined = Composed([Noting(), SequentialAdapter()])
    backbone = adapted(combined)
    of_b, rest = combined.parameter_groups(backbone)
    assert (of_b.name, of_b.learning_rate_scale) == ("B", 3.0 * 2.0)
    assert rest.learning_rate_scale == 2.0
    assert len(of_b.parameters) == len(rest.parameters) == 24


def test_search_with_a_regularizer_is_refused() -> None:
    with pytest.raises(UserError, match="the search of das does not add a regularizer"):
        Composed([Noting(), DAS()])


def test_blocks_are_folded_once_all_updates_are_merged() -> None:
    combined = Composed([LoRA(), SequentialAdapter()])
    backbone = adapted(combined)
    combined.finalize(backbone)
    assert {type(block) for block in backbone.blocks} == {FoldedViltBlock}
    reducing = build_method("lora+tome")
    backbone = adapted(reducing)
    assert isinstance(reducing, Composed)
    assert len(list(reducing.method_parameters(backbone))) == 48
    reducing.finalize(backbone)
    assert {type(block) for block in backbone.blocks} == {FoldedReducingViltBlock}
    assert list(reducing.method_parameters(backbone)) == []


def test_pumer_in_a_combination_trains_only_what_the_others_train() -> None:
    assert trained(adapted(build_method("lora+pumer"))) == trained(adapted(LoRA()))


def test_cost_cases_are_those_of_the_search() -> None:
    combined = build_method("lora+das[skip=2]")
    (case,) = combined.cost_cases(mini())
    assert case.name == "2 joint skipped"
    combined.decide(case.decision)
    assert isinstance(adapted(combined).blocks[0], SkippedBlock)


def test_tables_of_options_reach_members(tmp_path: Path) -> None:
    from harness.config.sources import build_settings, from_file

    path = tmp_path / "exp.toml"
    path.write_text('[run]\nmethods = ["lora+das[skip=1]", "bitfit"]\ntasks = "vqa"\n[methods.lora]\nr = 2\n')
    (combined, _) = build_settings(from_file(path)).methods
    assert combined.members[1].options == {"r": "2"}
    assert combined.members[0].options == {"skip": "1"}


def test_a_searching_combination_runs_and_reproduces(tmp_path: Path) -> None:
    root = ensure_vqa(tmp_path / "data", sizes=Sizes(60, 2, 3, 1, 3, 1))
    das = DAS(DASOptions(skip=1, search_epochs=2, period=1))
    results = harness.run(
        methods=[Composed([LoRA(), das]), "lora[r=2]+tome"],
        tasks="vqa",
        data_root=root,
        epochs=1,
        batch_size=16,
        accelerator="cpu",
        in_process=True,
        results=tmp_path / "results",
    )
    searched, reduced = sorted(results.records, key=lambda record: record.cell.method.name)
    assert (searched.error, reduced.error) == (None, None)
    assert searched.cell.method.name == "das+lora"
    assert searched.cell.method.label == "das[period=1,search_epochs=2,skip=1]+lora"
    assert reduced.cell.method.label == "lora[r=2]+tome"
    assert searched.search is not None
    assert searched.search.decision is not None
    assert len(DASDecision.from_json(searched.search.decision).skipped) == 1
    assert searched.search.warm_start
    store = Store(tmp_path / "results")
    for record in (searched, reduced):
        cell, folder = open_cell(record, root, None, None), store.folder(record.cell.id)
        again = run_again(record, cell, folder, tmp_path / record.cell.id, Notes())
        assert [figure.name for figure in compare(folder, record, again).figures if not figure.same] == []
