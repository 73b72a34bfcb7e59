"""The code that a cell's id covers: everything that can change its result."""

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
    "harness": "only offers the Python interface",
    "harness.config.*": "reads settings, whose values are part of a cell's configuration",
    "harness.specs": "reads names and options, whose values are part of a cell's configuration",
    "harness.options": "reads options, whose values are part of a cell's configuration",
    "harness.registry": "finds classes by name; the classes it finds are covered",
    "harness.experiment.cell_progress": "reports progress",
    "harness.experiment.rates": "names methods and chooses learning rates, which are part of a cell's configuration",
    "harness.experiment.routes": "runs test examples after training, and draws no random number",
    "harness.records.routes": "writes files after the result is known",
    "harness.experiment.covered": "lists what is covered; its effect is in the digests",
    "harness.digests.code": "finds what is covered; its effect is in the digests",
    "harness.digests.source": "reads what is covered; its effect is in the digests",
    "harness.errors": "only words messages",
    "harness.process": "receives requests to save and to stop; a resumed cell equals an uninterrupted one",
    "harness.folders": "names folders",
    "harness.files": "writes files after the result is known",
    "harness.measure.flops": "only counts after training, and draws no random number",
    "harness.measure.parameters": "only counts, and draws no random number",
    "harness.measure.per_example": "only counts after training, and draws no random number",
    "harness.measure.errors": "only words messages",
    "methods.exporting": "writes weights after training",
    "tasks.mini.*": "generates the embedded benchmark's files, whose bytes are part of a cell's configuration",
}
"""Modules that a running cell imports but that cannot change its result, each with the reason. `.*` includes all
submodules.

`harness.measure.live`, which measures peak memory, is covered: it runs two training steps before training, which draw
from the same random generator as training's dropout.
"""


def code_of(method: Method[Any], task: Task[Any], backbone: Backbone, backbone_name: str) -> dict[str, str]:
    """Digests of the code that decides a cell's result, by part: run (shared by all cells), method, task, backbone.

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
    """The class of `thing` and its base classes, which may be of other packages, up to the contract."""
    return [each for each in type(thing).__mro__ if issubclass(each, contract)]
