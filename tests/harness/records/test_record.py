"""Records: complete round trip, invariants, and errors that name file and key."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from harness.errors import UserError
from harness.records.record import Failure, Part, Record
from harness.records.record_file import RECORD, read_record, write_record
from tests.support.stored_results import as_json, as_search, make_record


def write(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / RECORD
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_record_is_read_back_as_written(tmp_path: Path) -> None:
    record = make_record(search=as_search())
    assert read_record(write_record(tmp_path, record)) == record
    assert [path.name for path in tmp_path.iterdir()] == [RECORD]


def test_failed_measurement_is_recorded_as_an_error(tmp_path: Path) -> None:
    failure = {"error": "out of memory"}
    record = make_record(compute=failure, latency=failure, memory=failure)
    assert read_record(write_record(tmp_path, record)).latency == Failure(error="out of memory")
    assert json.loads((tmp_path / RECORD).read_text())["memory"] == failure


def test_every_key_is_documented() -> None:
    fields = {
        f"{part.__name__}.{key}": field
        for part in (Record, *Part.__subclasses__())
        for key, field in part.model_fields.items()
    }
    assert len(fields) > 80
    assert [name for name, field in fields.items() if not field.description] == []


def test_the_primary_metric_is_that_of_the_reported_split() -> None:
    assert make_record(accuracy=60.0).primary == 60.0
    assert make_record(accuracy=60.0, reported_split="val").primary == 61.0
    assert make_record(status="failed", error="boom", metrics={}).primary is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cell__method__lable": "x"}, "cell.method.lable: Extra inputs are not permitted"),
        ({"cell__seed": "many"}, "cell.seed: Input should be a valid integer"),
        ({"parameters__total": 5}, "parameters: groups add up to"),
        ({"parameters__updated": 5}, "parameters: updated is 5, not backbone_tuned"),
        ({"compute__flops_total": 5}, "flops_total is 5, not 2 × macs_total"),
        ({"compute__macs": {"head": 1}}, "components add up to 1 MACs"),
        ({"metrics": {"val": {"accuracy": 1.0}}}, "a finished cell needs metrics.test.accuracy"),
        ({"error": "boom"}, "error must be given if and only if status is 'failed'"),
        ({"timestamps__started": "2025-01-01T10:00:00"}, "timestamps.started: "),
    ],
)
def test_an_error_names_the_file_and_the_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path, as_json(**changes))
    with pytest.raises(UserError) as raised:
        read_record(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_records_of_another_schema_are_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"schema_version 0 is of an older harness.*run the cell again"):
        read_record(write(tmp_path, {"schema_version": 0, "anything": 1}))
    with pytest.raises(UserError, match=r"schema_version 99 is of a newer harness.*update the harness"):
        read_record(write(tmp_path, {"schema_version": 99}))


def test_file_that_is_not_a_record_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 1, column 2: not valid JSON"):
        read_record(write(tmp_path, '{"schema_ver'))
    with pytest.raises(UserError, match="valid dictionary"):
        read_record(write(tmp_path, [1]))
    with pytest.raises(UserError, match="no such file"):
        read_record(tmp_path / "none.json")


def test_nan_scores_cannot_be_recorded() -> None:
    with pytest.raises(ValidationError, match="finite"):
        make_record(accuracy=float("nan"))


def test_a_record_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        make_record().timestamps.started = datetime(2025, 1, 1, tzinfo=UTC)  # type: ignore[misc]


def test_texts_that_tables_show_are_on_one_line() -> None:
    record = make_record("lora", cell__method__label="a\nb\x1b[2J", cell__task__title="x\ry")
    assert (record.cell.method.label, record.cell.task.title) == ("a\\nb\\x1b[2J", "x\\ry")
    failed = make_record(status="failed", error="first\nsecond", metrics={})
    assert failed.error == "first\\nsecond"
