"""Evaluation of a finished cell from what it stored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from lightning_fabric import Fabric
from safetensors.torch import load_file

from harness.backbones.base import BackboneOptions
from harness.cell import deployed_model, loader, make_fabric
from harness.encoding import cached_encoding
from harness.errors import UserError
from harness.fit import predict
from harness.plan import Cell, Request, build_cell, build_workplace, open_encodings
from harness.record import MethodChoice, Record
from harness.registry import build_method, resolve_backbone
from harness.spec import Spec, format_value, parse_specs
from harness.store import WEIGHTS, Store
from tasks.images import ImageCache


def cell_of(
    record: Record,
    data_root: Path | None,
    weights: str | None,
    tokenizer: str | None,
    accelerator: str = "auto",
) -> Cell:
    """The cell a record describes, with its backbone and data loaded again.

    Raises:
        UserError: the backbone's weights or the task's classes are not those of the record.
    """
    chosen, protocol = record.cell, record.protocol
    processor = chosen.backbone.config
    request = Request(
        methods=(_method_spec(chosen.method),),
        tasks=(Spec(chosen.task.name, _texts(chosen.task.options)),),
        backbone=chosen.backbone.name,
        backbone_options=BackboneOptions(
            weights, tokenizer, int(str(processor["image_size"])), int(str(processor["text_length"]))
        ),
        seeds=(chosen.seed,),
        data_root=data_root,
        epochs=int(str(protocol["epochs"])),
        batch_size=int(str(protocol["batch_size"])),
        select=str(protocol["select"]),
        precision=str(protocol["precision"]),
        augment=str(protocol.get("augment", "none")),
        learning_rate=None if record.training is None else record.training.learning_rate,
        accelerator=accelerator,
        skip_bad_images=record.skipped_images > 0,
    )
    if data_root is None and record.data.benchmark != "mini":
        raise UserError(
            f"cell {chosen.id} was trained on {record.data.benchmark}; name its folder with --data-root."
        )
    backbone = resolve_backbone(request.backbone)(request.backbone_options)
    if backbone.digest() != chosen.backbone.digest:
        raise UserError(
            f"cell {chosen.id} was trained on other weights of {chosen.backbone.name} "
            f"({chosen.backbone.digest[:12]}, these are {backbone.digest()[:12]}); name them with --weights."
        )
    images = ImageCache(backbone.processor, request.image_budget_mib)
    encodings = open_encodings(request, backbone)
    workplace = build_workplace(request, request.tasks[0], backbone, images, encodings=encodings)
    classes = record.data.details.get("answers")
    if classes is not None and workplace.data.provenance.get("answers") != classes:
        raise UserError(
            f"{workplace.data_root}: its answer classes are not those cell {chosen.id} was trained on."
        )
    return replace(build_cell(workplace, request.methods[0], chosen.seed), id=chosen.id)


def evaluate_cell(
    prefix: str,
    results: Path,
    split: str,
    data_root: Path | None,
    weights: str | None,
    tokenizer: str | None,
    submission: Path | None,
) -> dict[str, float]:
    """Predict a split with a cell's tuned weights; returns its metrics, empty without annotations."""
    store = Store(results)
    record = store.find(prefix)
    if record.status != "finished":
        raise UserError(f"cell {record.cell.id} has not finished: {record.error}")
    if split not in ("val", "test"):
        raise UserError(f"--split has to be val or test, got '{split}'.")
    cell = cell_of(record, data_root, weights, tokenizer)
    workplace = cell.workplace
    fabric: Fabric = make_fabric(workplace)
    decision = None if record.search is None else record.search.decision
    tuned = load_file(store.folder(record.cell.id) / WEIGHTS)
    model = fabric.setup_module(deployed_model(cell, tuned, decision))
    trained = {name.removeprefix("backbone.") for name in tuned}
    with cached_encoding(model.backbone, workplace.encodings, evaluation=True, tuned=trained):
        predictions = predict(fabric, model, workplace.task, loader(workplace, split))
    if submission is not None:
        workplace.task.write_submission(predictions, submission)
    if any(prediction.get("score") is None for prediction in predictions):
        return {}
    return workplace.task.score(predictions)


def _method_spec(method: MethodChoice) -> Spec:
    """The label says what differs from the defaults; all options are spelt out if the defaults have changed."""
    (spec,) = parse_specs(method.label)
    if dict(build_method(spec).config()) == json.loads(json.dumps(method.options)):
        return spec
    return Spec(method.name, _texts(method.options))


def _texts(options: object) -> dict[str, str]:
    """Options as they are written inline."""
    if not isinstance(options, dict):
        return {}
    return {key: format_value(value) for key, value in options.items() if value not in ([], ())}
