"""The cell that a record describes, loaded again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from harness.backbones.base import BackboneOptions
from harness.config import Request
from harness.errors import UserError
from harness.experiment.plan import Cell, build_cell, build_testbed, open_encodings
from harness.options import format_value
from harness.records.record import MethodChoice, Record
from harness.registry import build_method, resolve_backbone
from harness.specs import Spec, parse_specs
from tasks.data.images import ImageCache


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
    testbed = build_testbed(request, request.tasks[0], backbone, images, encodings=encodings)
    classes = record.data.details.get("answers")
    if classes is not None and testbed.data.provenance.get("answers") != classes:
        raise UserError(
            f"{testbed.data_root}: its answer classes are not those cell {chosen.id} was trained on."
        )
    return replace(build_cell(testbed, request.methods[0], chosen.seed), id=chosen.id)


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
