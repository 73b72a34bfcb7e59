"""Which code a cell's id covers: everything that decides its result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.backbones.base import Backbone
from harness.digests.code import code_digest, reachable
from harness.registry import resolve_backbone
from methods.base import Method
from tasks.base import Task

RUN = "harness.experiment.cell"
"""The module that runs a cell."""

NOT_COVERED: Mapping[str, str] = {
    "harness": "offers the harness to notebooks; decides nothing itself",
    "harness.config.*": "reads settings, whose values are part of a cell's configuration",
    "harness.specs": "reads names and options, whose values are part of a cell's configuration",
    "harness.options": "reads options, whose values are part of a cell's configuration",
    "harness.registry": "finds classes by name; the classes it finds are covered",
    "harness.experiment.cell_progress": "tells how far a cell is",
    "harness.experiment.covered": "says what is covered; what follows from it is in the digests",
    "harness.digests.code": "finds what is covered; what follows from it is in the digests",
    "harness.digests.source": "reads what is covered; what follows from it is in the digests",
    "harness.errors": "words of messages",
    "harness.files": "writes down what has been decided",
    "harness.measure.flops": "counts after training, and draws no random number",
    "harness.measure.parameters": "counts, and draws no random number",
    "harness.measure.per_example": "counts after training, and draws no random number",
    "harness.measure.errors": "words of messages",
    "methods.exporting": "writes down what has been trained",
    "tasks.mini.*": "draws the embedded benchmark's files, whose bytes are part of a cell's configuration",
}
"""Modules that running a cell reaches and that decide no result, each with the reason; `.*`: and all below.

Peak memory (`harness.measure.live`) is not among them: it is measured over two training steps before training, which
draw from the same generator as training's dropout.
"""


def code_of(method: Method[Any], task: Task[Any], backbone: Backbone, backbone_name: str) -> dict[str, str]:
    """Digests of the code that makes a cell, by part: run (what all cells share), method, task, backbone.

    Raises:
        UserError: a module cannot be found or has no source.
    """
    shared = reachable([RUN], NOT_COVERED)
    parts: dict[str, list[object]] = {
        "method": [each for one in (method, *method.members) for each in _classes(one, Method)],
        "task": list(_classes(task, Task)),
        "backbone": [
            *_classes(backbone, Backbone),
            type(backbone.processor),
            resolve_backbone(backbone_name),
        ],
    }
    code = {"run": code_digest(shared)}
    for part, roots in parts.items():
        reached = reachable(roots, NOT_COVERED)
        code[part] = code_digest({name: source for name, source in reached.items() if name not in shared})
    return code


def _classes(thing: object, contract: type) -> list[type]:
    """The class of `thing` and what it inherits from, which may be of another package, down to the contract."""
    return [each for each in type(thing).__mro__ if issubclass(each, contract)]
