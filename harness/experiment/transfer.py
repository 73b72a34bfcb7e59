"""Evaluate what a cell has trained on another backbone, without tuning it there."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.config.sources import flag_of
from harness.errors import UserError
from harness.experiment.build import loader
from harness.experiment.reload import cell_of, deployed, tuned_weights
from harness.files import read_json, write_atomically
from harness.records.record import Record
from harness.records.store import Store
from harness.registry import build_method
from harness.specs import parse_spec
from harness.training.encoder_cache import cached_encoding
from harness.training.fabric import make_fabric
from harness.training.loop import predict

TRANSFERS = "transfers.json"
"""In the results folder: all transfers, one entry per pair of cells."""

HEAD_METHOD = "classifier"
"""The method whose cells give the other backbone its head by default: it changes nothing else."""


@dataclass(frozen=True)
class Transfer:
    """What one cell trained, on another cell's backbone and head. Scores are of the test split, in percent.

    own: of the cell on its own backbone. without: of the other cell as it is. carried: of the other cell with what the
    first has trained.
    """

    source: str
    method: str
    seed: int
    task: str
    metric: str
    from_backbone: str
    to_backbone: str
    head: str
    head_method: str
    own: float
    without: float
    carried: float

    @property
    def change(self) -> float:
        """Change of the other cell's score."""
        return self.carried - self.without


def transfer_cell(
    prefix: str,
    backbone: str,
    results: Path,
    head: str | None = None,
    data_root: Path | None = None,
    weights: str | None = None,
    tokenizer: str | None = None,
    where: Callable[[str], str] = flag_of,
) -> Transfer:
    """Carry what a finished cell has trained over to `backbone` and evaluate it on the test split.

    head: id of a finished cell on the other backbone, whose head and weights are used; by default a cell of
        `classifier` on the same task and data, with the same seed if there is one.
    data_root, weights, tokenizer: locations on this machine, of the task's data and of the other backbone.

    Raises:
        UserError: the method does not transfer, no cell on the other backbone has a head for this task, or a cell
            cannot be loaded.
    """
    store = Store(results)
    source = store.find(prefix)
    method = build_method(parse_spec(source.cell.method.label))
    if not method.transfers:
        raise UserError(
            f"cell {source.cell.id}: what {source.cell.method.name} trains cannot be used on another backbone."
        )
    tuned = tuned_weights(store, source)
    target = _cell_with_head(store, source, backbone) if head is None else store.find(head)
    _check_fit(source, target, backbone)
    cell = cell_of(target, data_root, weights, tokenizer, where=where)
    model = deployed(cell, store, target, tuned_weights(store, target))
    own = {name.removeprefix("backbone."): tensor for name, tensor in tuned.items()}
    method.carry_over(model.backbone, own, _image_size(source))
    score = _test_score(cell.testbed, model.requires_grad_(False).eval(), own)
    assert source.primary is not None
    assert target.primary is not None
    found = Transfer(
        source=source.cell.id,
        method=source.cell.method.label,
        seed=source.cell.seed,
        task=source.cell.task.name,
        metric=source.cell.task.primary_metric,
        from_backbone=source.cell.backbone.name,
        to_backbone=backbone,
        head=target.cell.id,
        head_method=target.cell.method.label,
        own=source.primary,
        without=target.primary,
        carried=score,
    )
    _keep(store, found)
    return found


def transfers(results: Path) -> list[Transfer]:
    """All transfers of a results folder, in the order in which they were first made.

    Raises:
        UserError: the file is not what was written.
    """
    path = results / TRANSFERS
    if not path.is_file():
        return []
    try:
        return [Transfer(**each) for each in read_json(path).value]
    except TypeError as error:
        raise UserError(
            f"{path}: cannot be read ({error}); delete it and run `harness transfer` again."
        ) from None


def _keep(store: Store, found: Transfer) -> None:
    """Add a transfer to the file, in the place of an earlier one of the same pair."""
    pairs = {(each.source, each.head): each for each in transfers(store.root)}
    pairs[found.source, found.head] = found
    content = json.dumps([asdict(each) for each in pairs.values()], indent=1)
    write_atomically(store.root / TRANSFERS, f"{content}\n".encode())


def _test_score(testbed: Any, model: Any, tuned: dict[str, Tensor]) -> float:
    fabric = make_fabric(testbed.settings)
    wrapped = fabric.setup_module(model)
    with cached_encoding(wrapped.backbone, testbed.encodings, evaluation=True, tuned=set(tuned)):
        predictions = predict(fabric, wrapped, testbed.task, loader(testbed, "test"))
    if any(prediction.get("score") is None for prediction in predictions):
        raise UserError(f"{testbed.data_root}: its test split has no annotations, so nothing can be scored.")
    return float(testbed.task.score(predictions)[testbed.task.primary_metric])


def _cell_with_head(store: Store, source: Record, backbone: str) -> Record:
    found = [
        record
        for record in store.records()
        if record.status == "finished"
        and record.cell.backbone.name == backbone
        and record.cell.task.name == source.cell.task.name
        and record.cell.method.name == HEAD_METHOD
        and record.data.digest == source.data.digest
    ]
    if not found:
        raise UserError(
            f"{store.root}: no cell of {HEAD_METHOD} on {backbone} has a head for {source.cell.task.name} with the "
            f"same data. Run `harness run --methods {HEAD_METHOD} --tasks {source.cell.task.name} --backbone "
            f"{backbone}` first, or name a cell with --head."
        )
    return min(found, key=lambda record: (record.cell.seed != source.cell.seed, record.cell.seed))


def _check_fit(source: Record, target: Record, backbone: str) -> None:
    if target.status != "finished":
        raise UserError(f"cell {target.cell.id} has not finished: {target.error}")
    if target.cell.backbone.name != backbone:
        raise UserError(f"cell {target.cell.id} is on {target.cell.backbone.name}, not on {backbone}.")
    if target.cell.task.name != source.cell.task.name or target.data.digest != source.data.digest:
        raise UserError(
            f"cells {source.cell.id} and {target.cell.id} were not made with the same task and data."
        )
    if "test" not in source.metrics or "test" not in target.metrics:
        raise UserError(f"cells {source.cell.id} and {target.cell.id} have no scores on a test split.")


def _image_size(record: Record) -> int:
    size = record.cell.backbone.config.get("image_size")
    if not isinstance(size, int):
        raise UserError(f"cell {record.cell.id}: its record has no image size of the backbone.")
    return size


def table_rows(found: Sequence[Transfer]) -> list[list[str]]:
    """Rows of the transfer table: method, task, backbones, scores."""
    return [
        [
            each.method,
            each.task,
            str(each.seed),
            f"{each.from_backbone} → {each.to_backbone}",
            each.head_method,
            f"{each.own:.2f}",
            f"{each.without:.2f}",
            f"{each.carried:.2f}",
            f"{each.change:+.2f}",
        ]
        for each in found
    ]


HEADERS = (
    "method",
    "task",
    "seed",
    "backbones",
    "head of",
    "on its own backbone",
    "other backbone without",
    "with",
    "change",
)
"""Of `table_rows`."""
