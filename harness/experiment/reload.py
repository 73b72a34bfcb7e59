"""Load the cell that a record describes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.backbones.checkpoints import read_tensors
from harness.config import RunSettings
from harness.config.sources import Source, build_settings, flag_of
from harness.errors import UserError, one_line
from harness.experiment.build import deployed_model
from harness.experiment.plan import Cell, build_cell, build_testbed, load_backbone, open_encodings
from harness.options import format_value
from harness.records.record import MethodChoice, Record
from harness.records.store import WEIGHTS, Store
from harness.registry import build_method
from harness.specs import Spec, combine, member_names, parse_specs
from harness.training.model import TaskModel
from tasks.data.image_cache import ImageCache


def cell_of(
    record: Record,
    data_root: Path | None,
    weights: str | None,
    tokenizer: str | None,
    accelerator: str = "auto",
    method: object | None = None,
    where: Callable[[str], str] = flag_of,
) -> Cell:
    """The cell that a record describes, with its backbone and data loaded.

    data_root, weights, tokenizer: locations on this machine, which records do not contain.
    method: the method object, if the record's is not registered under a name.
    where: how an error names these three; by default as options of the command line.

    Raises:
        UserError: the backbone's weights or the task's classes differ from the record's.
    """
    chosen = record.cell
    here = Source({"data_root": data_root, "weights": weights, "tokenizer": tokenizer}, where)
    settings = settings_of(record, here, accelerator, method)
    if settings.data.data_root is None and record.data.benchmark != "mini":
        raise UserError(
            f"cell {chosen.id} was trained on {record.data.benchmark}; "
            f"name its folder with {here.where('data_root')}."
        )
    backbone = load_backbone(settings.backbone, settings.backbone_options)
    if backbone.digest() != chosen.backbone.digest:
        raise UserError(
            f"cell {chosen.id} was trained on other weights of {chosen.backbone.name} "
            f"({chosen.backbone.digest[:12]}, these are {backbone.digest()[:12]}); "
            f"name them with {here.where('weights')}."
        )
    images = ImageCache(backbone.processor, settings.data.image_budget_mib, settings.data.image_cache)
    encodings = open_encodings(settings, backbone)
    testbed = build_testbed(settings, settings.tasks[0], backbone, images, encodings=encodings)
    classes = record.data.details.get("answers")
    if classes is not None and testbed.data.provenance.get("answers") != classes:
        raise UserError(
            f"{testbed.data_root}: its answer classes are not those that cell {chosen.id} was trained on."
        )
    return replace(build_cell(testbed, settings.methods[0], chosen.seed), id=chosen.id)


def tuned_weights(store: Store, record: Record) -> dict[str, Tensor]:
    """A finished cell's tuned weights.

    Raises:
        UserError: the cell has not finished, or its weights are missing or damaged.
    """
    if record.status != "finished":
        raise UserError(f"cell {record.cell.id} has not finished: {record.error}")
    path = store.folder(record.cell.id) / WEIGHTS
    if not path.exists():
        raise UserError(f"{path}: no such file; results may be shared without weights. Run the cell again.")
    return read_tensors(path)


def deployed(cell: Cell, store: Store, record: Record, tuned: Mapping[str, Tensor]) -> TaskModel:
    """The finalised model of a finished cell with its tuned weights.

    Raises:
        UserError: the weights or the search's decision do not fit the cell.
    """
    decision = None if record.search is None else record.search.decision
    folder = store.folder(record.cell.id)
    try:
        return deployed_model(cell, tuned, decision)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder}: its weights or its decision do not fit the cell: {one_line(error)}."
        ) from error


def settings_of(
    record: Record, here: Source, accelerator: str | None = None, method: object | None = None
) -> RunSettings:
    """The settings of a record's cell; those that name something on this machine are taken from `here`.

    accelerator: replaces the record's.

    Raises:
        UserError: a setting of the record is unknown or invalid (in this version).
    """
    chosen = record.cell
    kept: dict[str, Any] = {
        "recipe": "own",  # of records that are older than this setting
        **(record.settings or _of_protocol(record)),
        # Resolved options, as defaults may have changed since.
        "methods": _method_spec(chosen.method) if method is None else method,
        "tasks": Spec(chosen.task.name, _texts(chosen.task.options)),
        "backbone": chosen.backbone.name,
        "seeds": chosen.seed,
    }
    if accelerator is not None:
        kept["accelerator"] = accelerator
    given = {key: value for key, value in here.values.items() if value is not None}
    of_record = Source(kept, lambda key: f"cell {chosen.id}: settings: {key}")
    return build_settings(of_record, replace(here, values=given))


def _of_protocol(record: Record) -> dict[str, Any]:
    """Settings of a record that is older than the key `settings`."""
    protocol: Mapping[str, Any] = record.protocol
    processor: Mapping[str, Any] = record.cell.backbone.config
    measured = protocol.get("measured_at", {})
    names = ("epochs", "batch_size", "weight_decay", "warmup", "select", "precision", "augment")
    found = {
        **{name: protocol[name] for name in (*names, "head_learning_rate") if name in protocol},
        **{name: processor[name] for name in ("image_size", "text_length") if name in processor},
        "learning_rate": None if record.training is None else record.training.learning_rate,
        "skip_bad_images": record.skipped_images > 0,
    }
    return found if "image_size" not in measured else {**found, "measured_image_size": measured["image_size"]}


def _method_spec(method: MethodChoice) -> Spec:
    """The method from its label, which has the options that differ from the defaults; with all options if the defaults
    have changed.
    """
    (spec,) = parse_specs(method.label)
    if json.loads(json.dumps(build_method(spec).config(), default=str)) == method.options:
        return spec
    names = member_names(method.name)
    if len(names) == 1:
        return Spec(method.name, _texts(method.options))
    return combine(Spec(name, _texts(method.options[name])) for name in names)


def _texts(options: object) -> dict[str, str]:
    """Options as text, as in a spec."""
    if not isinstance(options, dict):
        return {}
    return {key: format_value(value) for key, value in options.items() if value not in ([], ())}
