"""A cell's search: it runs before training, and its result is kept until the cell is finished."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from harness.experiment.build import loader
from harness.experiment.cell_progress import Progress, keep_done
from harness.experiment.plan import Cell
from harness.files import write_atomically
from harness.training.checkpoint import (
    DamagedCheckpointError,
    load_checkpoint,
    load_tuned_state,
    restoring,
    save_checkpoint,
    tuned_state,
)
from harness.training.encoder_cache import cached_encoding
from harness.training.microbatch import MicroBatches
from harness.training.model import TaskModel
from harness.training.ranks import Ranks, on_first
from harness.training.search import FabricSearchTrainer, cut
from harness.training.seeds import derived_seed, generator
from methods.base import Decision, Method

SEARCH_CHECKPOINT = "search.pt"
"""State of an unfinished search."""


SEARCHED = "searched.pt"
"""Weights trained by the finished search."""


FOUND = "search.json"
"""Result of the finished search."""


@dataclass(frozen=True)
class Searched:
    """Cost and result of a search, as JSON values.

    seconds: duration, interrupted runs included.
    trained: examples seen in its training steps, repetitions counted.
    decision: input of `Decision.from_json`; the fields after it
    are what the decision's own methods return.
    """

    seconds: float
    trained: int
    training_examples: int
    reward_examples: int
    decision: dict[str, Any]
    summary: str
    figures: dict[str, str]
    diagram: dict[str, Any] | None
    trace: dict[str, Any] | None
    history: Any


def search(
    cell: Cell,
    method: Method[Any],
    fabric: Fabric,
    ranks: Ranks,
    scratch: Path,
    progress: Progress,
    micro: MicroBatches,
) -> Searched:
    """Run the method's search, or read its result from `scratch` if it is finished; the method takes the decision.

    Raises:
        DamagedCheckpointError: a file of an interrupted search cannot be used.
    """
    decision_class = method.Decision  # a method without one fails before its search, not after
    done = scratch / FOUND
    if not on_first(fabric, done.is_file):
        found = _run(cell, method, fabric, ranks, scratch, progress, micro)

        def keep() -> None:
            write_atomically(done, json.dumps(asdict(found)).encode())
            (scratch / SEARCH_CHECKPOINT).unlink(missing_ok=True)
            keep_done(scratch, "search", 1.0)

        on_first(fabric, keep)
    content = on_first(fabric, done.read_bytes)
    with restoring(done):
        searched = Searched(**json.loads(content))
        decision = decision_class.from_json(searched.decision)
    method.decide(decision)
    return searched


def begin_warm(method: Method[Any], model: TaskModel, fabric: Fabric, scratch: Path) -> bool:
    """Load the weights that the search trained, if the method starts from them; True if it does.

    Raises:
        DamagedCheckpointError: the weights cannot be used.
    """
    searched = scratch / SEARCHED
    found = on_first(fabric, lambda: load_checkpoint(searched))
    if not found:
        raise DamagedCheckpointError(searched, "it holds no weights")
    start = method.warm_start(model.backbone, found)
    if start:
        with restoring(searched):
            load_tuned_state(model, start)
    return bool(start)


def _run(
    cell: Cell,
    method: Method[Any],
    fabric: Fabric,
    ranks: Ranks,
    scratch: Path,
    progress: Progress,
    micro: MicroBatches,
) -> Searched:
    testbed = cell.testbed
    backbone = testbed.fresh_backbone()
    backbone.pooled_token_only = method.per_token
    head = testbed.task.build_head(backbone, generator(cell.seed, "initialisation of the head"))
    kept, held = cut(
        testbed.data.splits["train"], method.search_holdout, derived_seed(cell.seed, "search split")
    )
    checkpoint = scratch / SEARCH_CHECKPOINT
    planned = method.search_epochs * len(kept)

    def save(state: Any) -> None:
        save_checkpoint(checkpoint, state)
        keep_done(scratch, "search", trainer.cost.examples / planned)

    order = derived_seed(cell.seed, "search order")
    trainer = FabricSearchTrainer(
        fabric,
        testbed.task,
        backbone,
        head,
        loader(testbed, "train", order, kept, augmented=True, ranks=ranks),
        loader(testbed, "train", order, kept, ranks=ranks),
        loader(testbed, "train", derived_seed(cell.seed, "reward order"), held, ranks=ranks)
        if held
        else None,
        testbed.training,
        cell.learning_rate,
        testbed.training.head_learning_rate,
        generator(cell.seed, "search"),
        progress.advance,
        on_first(fabric, lambda: load_checkpoint(checkpoint) if checkpoint.is_file() else None),
        lambda state: on_first(fabric, lambda: save(state)),
        testbed.settings.device.checkpoint_minutes,
        partial(restoring, checkpoint),
        partial(cached_encoding, store=testbed.encodings),
        micro,
    )
    progress.stage("search", planned)
    decision = method.search(trainer)
    searched = tuned_state(TaskModel(testbed.task, backbone, head))
    on_first(fabric, lambda: save_checkpoint(scratch / SEARCHED, searched))
    return _describe(decision, trainer, len(kept), len(held))


def _describe(
    decision: Decision, trainer: FabricSearchTrainer, training_examples: int, reward_examples: int
) -> Searched:
    diagram, trace = decision.diagram(), decision.trace()
    return Searched(
        seconds=trainer.seconds,
        trained=trainer.cost.examples,
        training_examples=training_examples,
        reward_examples=reward_examples,
        decision=decision.to_json(),
        summary=decision.summary,
        figures=decision.figures(),
        diagram=None if diagram is None else asdict(diagram),
        trace=None if trace is None else asdict(trace),
        history=decision.history(),
    )
