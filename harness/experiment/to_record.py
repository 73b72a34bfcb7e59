"""Build a cell's record from its outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from harness.digests import digest_json
from harness.experiment.cell import Outcome
from harness.experiment.plan import Cell
from harness.experiment.routes import summarize_routes
from harness.experiment.search_stage import Searched
from harness.measure.flops import ComputeCounts
from harness.measure.parameters import ParameterCounts
from harness.measure.per_example import PerExample
from harness.records.environment import describe_environment
from harness.records.record import (
    BackboneChoice,
    CellChoice,
    Compute,
    ComputePerExample,
    DataProvenance,
    DecodingCost,
    Diagram,
    Environment,
    Memory,
    MethodChoice,
    ParameterGroups,
    Parameters,
    Record,
    SearchCost,
    TaskChoice,
    Timestamps,
    TrainingCost,
)
from harness.records.search_history import SearchHistory
from harness.training.fabric import make_fabric

CONVENTION = "multiply-accumulates of matrix products, convolutions and attention; LayerNorm elements apart"


def finished_record(cell: Cell, outcome: Outcome, started: datetime, tuned_file_bytes: int) -> Record:
    """Record of a finished cell."""
    task = cell.testbed.task
    reported = "test" if task.primary_metric in outcome.metrics.get("test", {}) else "val"
    return Record(
        **_frame(cell, started),
        status="finished",
        reported_split=reported,
        metrics={split: dict(metrics) for split, metrics in outcome.metrics.items()},
        majority_accuracy=outcome.majority,
        parameters=_parameters(outcome.parameters),
        deployed_parameters=_parameters(outcome.deployed_parameters),
        compute=_compute(outcome.compute),
        full_compute=_compute(outcome.full_compute),
        compute_per_example=_per_example(outcome.compute_per_example),
        routes=None if outcome.routes is None else summarize_routes(outcome.routes),
        memory=Memory(
            peak_training_mib=outcome.training_memory.peak_mib,
            baseline_mib=outcome.training_memory.baseline_mib,
            how=outcome.training_memory.how,
        ),
        tuned_file_bytes=tuned_file_bytes,
        training=TrainingCost(**outcome.training),
        search=None if outcome.search is None else _search(cell, outcome.search, outcome),
        skipped_images=len(outcome.skipped_files),
        skipped_files=outcome.skipped_files,
        skipped_examples=dict(outcome.skipped_examples),
    )


def failed_record(cell: Cell, error: str, started: datetime) -> Record:
    """Record of a cell that crashed."""
    return Record(**_frame(cell, started), status="failed", error=error)


def _frame(cell: Cell, started: datetime) -> dict[str, Any]:
    """Parts that every record has, finished or failed."""
    device = make_fabric(cell.testbed.settings).device.type
    return {
        **planned_parts(cell),
        "environment": Environment(**describe_environment(), device=device),
        "timestamps": Timestamps(started=started, finished=datetime.now().astimezone()),
    }


def planned_parts(cell: Cell) -> dict[str, Any]:
    """Parts that are known before the cell runs: cell, settings, protocol, data."""
    testbed = cell.testbed
    method, task, backbone = cell.method(), testbed.task, testbed.backbone
    return {
        "cell": CellChoice(
            id=cell.id,
            method=MethodChoice(name=method.name, options=_jsonable(method.config()), label=cell.label),
            task=TaskChoice(
                name=task.name,
                title=task.title,
                version=task.version,
                options=_jsonable(task.config()),
                primary_metric=task.primary_metric,
                higher_is_better=task.higher_is_better,
            ),
            backbone=BackboneChoice(
                name=testbed.backbone_name,
                digest=backbone.digest(),
                config=_jsonable(backbone.processor.describe()),
            ),
            configuration=cell.configuration,
            code=dict(cell.code),
            seed=cell.seed,
        ),
        "settings": cell.settings.to_record(),
        "protocol": _jsonable(testbed.protocol),
        "data": DataProvenance(
            benchmark="mini" if testbed.embedded else testbed.data_root.name,
            digest=digest_json(testbed.data.provenance),
            details=_jsonable(testbed.data.provenance),
        ),
    }


def _jsonable(value: Any) -> Any:
    """Convert tuples to lists and other objects, such as paths, to text, recursively."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _parameters(counts: ParameterCounts) -> Parameters:
    return Parameters(
        groups=ParameterGroups(
            backbone_frozen=counts.backbone_frozen,
            backbone_tuned=counts.backbone_tuned,
            common=counts.common,
            head=counts.head,
            method=counts.method,
            method_frozen=counts.method_frozen,
        ),
        total=counts.total,
        updated=counts.updated,
    )


def _compute(counts: ComputeCounts) -> Compute:
    return Compute(
        image_size=counts.image_size,
        text_length=counts.text_length,
        batch_size=counts.batch_size,
        macs=dict(counts.macs),
        macs_total=counts.macs_total,
        flops_total=counts.flops_total,
        layer_norm_elements=dict(counts.layer_norm_elements),
        convention=CONVENTION,
        decoding=None if counts.decoding is None else DecodingCost(**asdict(counts.decoding)),
    )


def _per_example(counts: PerExample | None) -> ComputePerExample | None:
    return None if counts is None else ComputePerExample(**asdict(counts))


def _search(cell: Cell, found: Searched, outcome: Outcome) -> SearchCost:
    return SearchCost(
        seconds=found.seconds,
        share=found.seconds / (found.seconds + outcome.training["seconds"]),
        epochs=found.trained / len(cell.testbed.data.splits["train"]),
        training_examples=found.training_examples,
        reward_examples=found.reward_examples,
        summary=found.summary,
        warm_start=outcome.warm_start,
        figures=found.figures,
        diagram=None if found.diagram is None else Diagram.model_validate(found.diagram),
        decision=found.decision,
    )


def search_history(outcome: Outcome) -> SearchHistory | None:
    """Course of the cell's search, stored in a file beside the record; None without a search."""
    if outcome.search is None:
        return None
    return SearchHistory.model_validate({"trace": outcome.search.trace, "history": outcome.search.history})
