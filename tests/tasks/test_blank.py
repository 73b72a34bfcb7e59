"""Blanked modalities: what is left of an example, and that the record says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.backbones.vilt.processor import ViltProcessor
from harness.errors import UserError
from harness.registry import build_task
from harness.specs import parse_spec
from tasks.base import Example, Task
from tasks.data.images import BLANK_IMAGE, decode, load_rgb, upright_size
from tasks.data.subsets import blanked
from tasks.mini.nlvr2 import Sizes, ensure_nlvr2
from tasks.mini.retrieval import Sizes as RetrievalSizes
from tasks.mini.retrieval import ensure_retrieval
from tasks.mini.snli_ve import Sizes as SNLIVESizes
from tasks.mini.snli_ve import ensure_snli_ve
from tasks.mini.vqa import Sizes as VQASizes
from tasks.mini.vqa import ensure_vqa


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    cache = tmp_path_factory.mktemp("cache")
    return {
        "vqa": ensure_vqa(cache, 0, VQASizes(20, 3, 2, 1, 2, 1)),
        "nlvr2": ensure_nlvr2(cache, 0, Sizes(1, 1, 1)),
        "snli_ve": ensure_snli_ve(cache, 0, SNLIVESizes(1, 1, 1)),
        "retrieval": ensure_retrieval(cache, 0, RetrievalSizes(2, 2, 2)),
    }


def test_only_the_named_modality_is_blanked() -> None:
    example = Example("7", "a red star", (Path("a.png"), Path("b.png")), 1, "3")
    assert blanked([example], "none") == [example]
    assert blanked([example], "text") == [Example("7", "", example.images, 1, "3")]
    assert blanked([example], "image") == [Example("7", "a red star", (BLANK_IMAGE,) * 2, 1, "3")]


def test_the_blank_image_is_mid_grey_at_the_size_that_the_backbone_reads() -> None:
    assert load_rgb(BLANK_IMAGE).getextrema() == ((128, 128),) * 3
    assert upright_size(BLANK_IMAGE) == load_rgb(BLANK_IMAGE).size
    processor = ViltProcessor(None, 96, 32, 40)
    pixels: Any = decode(str(BLANK_IMAGE), processor)
    assert pixels.shape == (3, 96, 96)
    assert np.unique(pixels.numpy()).tolist() == [128]


@pytest.mark.parametrize("name", ["vqa", "nlvr2", "snli_ve", "retrieval"])
def test_every_task_blanks_all_its_splits_and_records_it(name: str, roots: dict[str, Path]) -> None:
    whole = build_task(parse_spec(name)).load(roots[name])
    for blank in ("image", "text"):
        task: Task[Any] = build_task(parse_spec(f"{name}[blank={blank}]"))
        assert task.config()["blank"] == blank
        data = task.load(roots[name])
        assert data.provenance == whole.provenance
        for split, examples in data.splits.items():
            assert examples == blanked(whole.splits[split], blank)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="blank must be one of none, image, text"):
        build_task(parse_spec(f"{name}[blank=sound]"))
