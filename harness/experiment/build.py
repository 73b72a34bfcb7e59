"""Build the parts of a cell: batches of a split, the adapted model, the deployed model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from harness.backbones.base import Backbone
from harness.backbones.four_bits import hold_in_four_bits, restore
from harness.experiment.plan import Cell, Testbed
from harness.training.checkpoint import load_tuned_state
from harness.training.loop import Batches
from harness.training.model import TaskModel
from harness.training.ranks import Ranks
from harness.training.seeds import generator
from methods.base import Method
from tasks.data.augment import AUGMENTATIONS
from tasks.data.loader import Loader


def loader(
    testbed: Testbed,
    split: str,
    seed: int | None = None,
    examples: Any = None,
    augmented: bool = False,
    batch_size: int | None = None,
    ranks: Ranks | None = None,
) -> Batches:
    """Batches of a split, shuffled if `seed` is given.

    examples: a part of the split; None: all. augmented: apply the run's augmentation (training only).
    batch_size: None: as in training. ranks: this process's place among those that share every batch.
    """
    data = testbed.settings.data
    augment = AUGMENTATIONS[data.augment] if augmented else None
    found = Loader(
        testbed.data.splits[split] if examples is None else examples,
        testbed.task,
        testbed.backbone.processor,
        testbed.training.batch_size if batch_size is None else batch_size,
        seed=0 if seed is None else seed,
        shuffle=seed is not None,
        workers=data.workers,
        cache=testbed.images,
        skip_bad_images=data.skip_bad_images,
        augment=augment,
        # Augmented images do not occur again, so caching their encodings is no use.
        key_images=testbed.encodings is not None and augment is None,
        rank=0 if ranks is None else ranks.rank,
        world_size=1 if ranks is None else ranks.world_size,
        every_step=ranks is not None and split == "train",
    )
    if split != "train":
        return found
    batches: Batches = testbed.task.training_batches(found, 0 if seed is None else seed)
    return batches


def adapted_model(cell: Cell, method: Method[Any], in_four_bits: bool | None = None) -> TaskModel:
    """A fresh backbone, adapted, with a fresh head; `requires_grad` is set on everything that trains.

    in_four_bits: whether the blocks' frozen matrices are held in four bits; None: as the settings say.
    """
    testbed = cell.testbed
    backbone = testbed.fresh_backbone()
    method.adapt(backbone, generator(cell.seed, "initialisation of the method"))
    backbone.pooled_token_only = method.per_token
    head = testbed.task.build_head(backbone, generator(cell.seed, "initialisation of the head"))
    for parameter in [*backbone.common_parameters(), *head.parameters()]:
        parameter.requires_grad_(True)
    if testbed.in_four_bits if in_four_bits is None else in_four_bits:
        hold_in_four_bits(backbone)
    return TaskModel(testbed.task, backbone, head)


def finalize(method: Method[Any], backbone: Backbone) -> None:
    """Turn the trained backbone into its deployed form, which has no matrices in four bits."""
    restore(backbone)
    method.finalize(backbone)


def deployed_model(
    cell: Cell, tuned: Mapping[str, Tensor] | None, decision: Mapping[str, Any] | None
) -> TaskModel:
    """The finalised model of a finished cell, rebuilt from its tuned weights and decision.

    decision: from the record. Without tuned weights the model has fresh ones: same shapes and cost, other outputs.
    """
    method = cell.method()
    if decision is not None:
        method.decide(method.Decision.from_json(decision))
    model = adapted_model(cell, method)
    if tuned is not None:
        load_tuned_state(model, dict(tuned))
    finalize(method, model.backbone)
    return model.requires_grad_(False).eval()
