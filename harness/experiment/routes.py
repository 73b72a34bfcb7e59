"""The blocks that each test example runs, for methods that route, and what the examples cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import Any

import torch

from harness.backbones.base import Backbone
from harness.experiment.build import loader
from harness.experiment.plan import Cell
from harness.measure.per_example import EXAMPLES, PerExample, chosen_examples, count_examples, summarize
from harness.records.record import Routes
from harness.records.routes import RouteFile
from harness.training.model import TaskModel
from methods.base import Method
from tasks.base import Batch

MOST = 4096
"""Number of test examples whose cost is counted where many cost the same; all of a smaller split."""


@torch.inference_mode()
def find_routes(cell: Cell, method: Method[Any], model: TaskModel) -> RouteFile | None:
    """The routes of all test examples through the finalised model; None if all run the same blocks.

    An example with several images has a route for each; one of retrieval has that of its first text.
    """
    model.eval()
    device = next(model.parameters()).device
    examples: dict[str, tuple[str, ...]] = {}
    for batch in loader(cell.testbed, "test"):
        moved = batch.to(device)
        passes = method.routes(model.backbone, lambda moved=moved: model(moved))  # type: ignore[misc]
        if passes is None:
            return None
        found: dict[str, list[str]] = {name: [] for name in batch.ids}
        for runs in passes:
            texts = len(runs) // len(batch)
            for row, route in enumerate(runs.int().tolist()):
                found[batch.ids[row // texts]].append("".join(map(str, route)))
        examples |= {name: tuple(routes) for name, routes in found.items()}
    return RouteFile(blocks=model.backbone.block_names, examples=examples)


def summarize_routes(routes: RouteFile) -> Routes:
    """Mean number of blocks that run, shares by block, and the number of different routes."""
    taken = Counter(route for each in routes.examples.values() for route in each)
    total = taken.total()
    runs = [sum(n for route, n in taken.items() if route[i] == "1") for i in range(len(routes.blocks))]
    return Routes(
        examples=len(routes.examples),
        blocks_run=sum(runs) / total,
        different=len(taken),
        shares={name: count / total for name, count in zip(routes.blocks, runs, strict=True)},
    )


def cost_of_examples(
    cell: Cell, method: Method[Any], model: TaskModel, untouched: Backbone, routes: RouteFile | None
) -> PerExample:
    """MACs of the finalised model and of the untouched backbone on real test examples.

    With `routes` these are all examples of the split, or the first 4,096 in the order of `chosen_examples`: of those
    with equal sizes and routes one is counted. Without, they are 64, each counted.
    """
    testbed = cell.testbed
    chosen = chosen_examples(testbed.data.splits["test"], EXAMPLES if routes is None else MOST)

    def sizes(batch: Batch) -> Hashable:
        return tuple(
            (part.input_ids.shape, part.pixels.shape, str(part.image_sizes)) for part in batch.inputs
        )

    def sizes_and_route(batch: Batch) -> Hashable:
        assert routes is not None
        return sizes(batch), routes.examples[batch.ids[0]]

    def count(backbone: Backbone, modules: Any, key: Any) -> list[int]:
        batches = loader(testbed, "test", examples=chosen, batch_size=1)
        return count_examples(testbed.task, backbone, model.head, modules, batches, key)

    own = count(model.backbone, method.method_modules(model.backbone), routes and sizes_and_route)
    return summarize(own, count(untouched, (), routes and sizes))
