"""Ranking 200 images × 1,000 captions with vilt-mini: the harness's evaluation against the plain way.

    pytest -o addopts= tests/benchmarks/test_retrieval_speed.py

Times are per pair. The evaluation runs the deployed form, as a run does. The plain way runs the model as loaded, in
float32: it takes the captions in the order of the file, pads each to the longest one, and embeds both sides of every
pair again. It ranks a few of the images, between batches of the evaluation, so that the load of the machine affects
both alike.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from harness.backbones.inputs import Inputs
from harness.config.sources import make_settings
from harness.experiment.build import adapted_model, deployed_model, loader
from harness.experiment.plan import build_cells, open_testbeds
from harness.process import prepare_process
from harness.training.conversion import converted_once
from harness.training.fabric import make_fabric
from tasks.base import Batch
from tasks.data.batches import pad_text, stack_images
from tasks.data.loader import Loader
from tasks.mini.retrieval import Sizes, ensure_retrieval
from tasks.retrieval.batches import score_matrix
from tests.benchmarks.groups import Group, Measured, in_groups

IMAGES, PLAIN_IMAGES = 200, 10
CAPTIONS_AT_ONCE = 500
PLAIN = "the plain way"
PAIRS = 128  # fits the caches better than the default of 512


def measure(precision: str, tolerance: float) -> Measured:
    """Rank all pairs, and some of them in the plain way; their scores agree within `tolerance`."""
    with TemporaryDirectory() as folder:
        return _measure(precision, tolerance, Path(folder))


def _measure(precision: str, tolerance: float, folder: Path) -> Measured:
    prepare_process()
    root = ensure_retrieval(folder, sizes=Sizes(train_images=5, val_images=5, test_images=IMAGES))
    settings = make_settings(
        methods="classifier",
        tasks=f"retrieval[pairs={PAIRS}]",
        backbone="vilt-mini",
        data_root=root,
        accelerator="cpu",
        precision=precision,
    )
    (cell,) = build_cells(settings, open_testbeds(settings))
    fabric = make_fabric(cell.testbed.settings)
    model = deployed_model(cell, None, None)
    as_loaded = adapted_model(cell, cell.method()).requires_grad_(False).eval()
    batches = loader(cell.testbed, "test")
    assert isinstance(batches, Loader)
    processor, images = batches.cache.processor, batches.cache
    pictures = {example.group: str(example.images[0]) for example in batches.examples}
    tokens = processor.tokenize([example.text for example in batches.examples])
    ids, mask = pad_text(tokens, processor.pad_id)
    plain: dict[str, torch.Tensor] = {}
    seconds = 0.0

    def rank_plainly(group: str) -> None:
        pixels, sizes = stack_images([images.get(pictures[group])], processor)  # type: ignore[list-item]
        scores = []
        with torch.inference_mode():
            for start in range(0, len(tokens), CAPTIONS_AT_ONCE):
                rows = slice(start, start + CAPTIONS_AT_ONCE)
                one = Inputs(ids[rows], None if mask is None else mask[rows], pixels, sizes)
                scores.append(as_loaded.head(as_loaded.backbone(one.paired())).flatten())
        plain[group] = torch.cat(scores)

    def evaluated(batch: Batch) -> torch.Tensor:
        nonlocal seconds
        began = time.perf_counter()
        for group in batch.ids:
            if group not in plain and len(plain) < PLAIN_IMAGES:
                rank_plainly(group)
        seconds += time.perf_counter() - began
        with torch.inference_mode(), fabric.autocast():
            return model(batch).float()  # type: ignore[no-any-return]

    started = time.perf_counter()
    with converted_once(fabric, model):
        matrix, _, firsts = score_matrix(
            evaluated, batches.examples, batches.tokens, images, cell.testbed.task.options.pairs
        )
    evaluation = time.perf_counter() - started - seconds
    assert matrix.shape == (IMAGES, 5 * IMAGES)
    row_of = {example.group: row for row, example in enumerate(firsts)}
    for group, scores in plain.items():
        torch.testing.assert_close(torch.from_numpy(matrix[row_of[group]]), scores, atol=tolerance, rtol=0)
    return {PLAIN: ([seconds / (len(tokens) * len(plain))], {}), "ours": ([evaluation / matrix.size], {})}


GROUPS = [
    Group(f"vilt-mini, ranking, {precision}", (PLAIN, "ours"), PLAIN, partial(measure, precision, tolerance))
    for precision, tolerance in (("32-true", 1e-4), ("bf16-mixed", 0.2))
]


@in_groups(GROUPS)
def test_ranking_the_embedded_pictures(group: Group, contestant: str, benchmark: Any) -> None:
    group.hand_over(contestant, benchmark)
