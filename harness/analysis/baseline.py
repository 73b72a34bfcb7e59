"""The baseline of a repeated benchmark: the figures of each cell when they were accepted.

A baseline is a JSON file under version control (schema 1):

    {"schema_version": 1,
     "accepted": when, "commit": of the code that made it, "platform": where,
     "cells": [{"method": label, "task": name, "backbone": name, "seed": number,
                "protocol": digest of everything that must agree before two results may be compared,
                "metric": name, "higher_is_better": true,
                "score": in percent, "low", "high": its 95 % interval over test examples,
                "parameters": of the trained model, "updated_parameters": those the method trains,
                "deployed_parameters": of the finalised model,
                "macs": of one forward pass of the finalised model,
                "tuned_file_bytes": size of the file of tuned weights,
                "latency_ratio": {"ratio", "low", "high"} or null}]}

latency_ratio: at batch size 1, the median divided by the untouched backbone's median in the same interleaved
measurement, with its 95 % interval. Ratios can be compared between machines better than milliseconds. Cells are
identified by method, task, backbone and seed, because a cell's id changes with the code, which is under test.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, Field, ValidationError

from harness.analysis.bootstrap import resample
from harness.analysis.scores import read_scores
from harness.errors import UserError
from harness.files import read_json, write_atomically
from harness.measure.latency import LatencySample, latency_ratio
from harness.records.protocol import newest, protocol_of
from harness.records.record import Compute, Failure, Latency, Part, Record
from harness.records.store import Store

SCHEMA_VERSION = 1


RESAMPLES = 10_000


class Ratio(Part):
    """Latency relative to the reference, with its interval."""

    ratio: float = Field(description="Median divided by the untouched backbone's median.")
    low: float = Field(description="Lower end of the 95 % interval.")
    high: float = Field(description="Upper end of the 95 % interval.")


class BaselineCell(Part):
    """The accepted figures of one cell."""

    method: str = Field(description="Label, such as lora[r=8].")
    task: str = Field(description="Registered name.")
    backbone: str = Field(description="Registered name.")
    seed: int = Field(description="Seed of the cell.")
    protocol: str = Field(
        description="SHA-256 (16 hex digits) of what must agree before scores may be compared."
    )
    metric: str = Field(description="The task's primary metric.")
    higher_is_better: bool = Field(description="Its direction.")
    score: float = Field(description="In percent.")
    low: float = Field(description="Lower end of its 95 % interval over test examples.")
    high: float = Field(description="Upper end of the interval.")
    parameters: int | None = Field(description="All parameters of the trained model.")
    updated_parameters: int | None = Field(description="backbone_tuned + method.")
    deployed_parameters: int | None = Field(description="All parameters of the finalised model.")
    macs: int | None = Field(description="Multiply-accumulates of one pass of the finalised model.")
    tuned_file_bytes: int | None = Field(description="Size of the tuned weights' file.")
    latency_ratio: Ratio | None = Field(description="None where latency was not measured.")

    @property
    def key(self) -> tuple[str, str, str, int]:
        """Backbone, task, method and seed, which identify the cell."""
        return self.backbone, self.task, self.method, self.seed

    @property
    def name(self) -> str:
        """The cell in words: `lora on vqa (vilt-mini), seed 0`."""
        return f"{self.method} on {self.task} ({self.backbone}), seed {self.seed}"


class Baseline(Part):
    """Contents of a baseline file."""

    schema_version: Literal[1] = Field(default=1, description="Version of these keys.")
    accepted: AwareDatetime = Field(description="When it was written.")
    commit: str | None = Field(
        description="Commit of the code that made the cells, if all were made by the same one."
    )
    platform: str = Field(description="Operating system and architecture.")
    cells: tuple[BaselineCell, ...] = Field(description="One per method, task, backbone and seed.")


def summarize(store: Store, records: Sequence[Record]) -> list[BaselineCell]:
    """Figures of the finished cells of a results folder; of repeated cells, those of the newest.

    Raises:
        UserError: a cell's predictions are missing or do not fit its record.
    """
    found = []
    for backbone in dict.fromkeys(record.cell.backbone.name for record in records):
        kept = newest(record for record in records if record.cell.backbone.name == backbone)
        found += [_summarize(store, record) for record in kept if record.status == "finished"]
    return sorted(found, key=lambda cell: cell.key)


def _summarize(store: Store, record: Record) -> BaselineCell:
    (scores,) = read_scores(store, [record])
    (draws,) = resample([scores.ratios], RESAMPLES)
    interval = draws.interval()
    cell, parameters, deployed = record.cell, record.parameters, record.deployed_parameters
    return BaselineCell(
        method=cell.method.label,
        task=cell.task.name,
        backbone=cell.backbone.name,
        seed=cell.seed,
        protocol=_digest(protocol_of(record)),
        metric=cell.task.primary_metric,
        higher_is_better=cell.task.higher_is_better,
        score=interval.estimate,
        low=interval.low,
        high=interval.high,
        parameters=None if parameters is None else parameters.total,
        updated_parameters=None if parameters is None else parameters.updated,
        deployed_parameters=None if deployed is None else deployed.total,
        macs=record.compute.macs_total if isinstance(record.compute, Compute) else None,
        tuned_file_bytes=record.tuned_file_bytes,
        latency_ratio=_latency_ratio(record),
    )


def _latency_ratio(record: Record) -> Ratio | None:
    """At batch size 1, from the last measurement that included the untouched backbone."""
    if isinstance(record.latency, Failure):
        return None
    references = {each.group: each for each in record.full_latency if each.batch_size == 1}
    shared = [each for each in record.latency if each.batch_size == 1 and each.group in references]
    if not shared:
        return None
    found = latency_ratio(_sample(shared[-1]), _sample(references[shared[-1].group]))
    return Ratio(ratio=found.ratio, low=found.low, high=found.high)


def _sample(latency: Latency) -> LatencySample:
    return LatencySample(latency.samples_ms, latency.wall_ms, latency.device, latency.threads)


def _digest(protocol: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:16]


def read_baseline(path: Path) -> Baseline:
    """Read a baseline file.

    Raises:
        UserError: the file does not exist or is not a baseline of this schema.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; --update writes a baseline from the results.")
    content: Any = read_json(path).value
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path}: a baseline of schema {version}, but this harness reads schema {SCHEMA_VERSION}; "
            "--update replaces it."
        )
    try:
        return Baseline.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {key}: {first['msg']}.") from error


def write_baseline(path: Path, cells: Sequence[BaselineCell], records: Sequence[Record]) -> None:
    """Write `cells` as the new baseline.

    Raises:
        UserError: the folder cannot be written.
    """
    commits = {record.environment.commit for record in records}
    baseline = Baseline(
        accepted=datetime.now(UTC).replace(microsecond=0),
        commit=commits.pop() if len(commits) == 1 else None,
        platform=records[0].environment.platform,
        cells=tuple(cells),
    )
    content = json.dumps(baseline.model_dump(mode="json"), indent=1, ensure_ascii=False)
    write_atomically(path, f"{content}\n".encode())
