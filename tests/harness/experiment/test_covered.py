"""A cell's id covers all code that decides its result, and no other code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import registry
from harness.backbones.base import BackboneOptions
from harness.digests import code as imports
from harness.digests.code import reachable
from harness.digests.source import Source, read_module
from harness.experiment.covered import NOT_COVERED, RUN, code_of
from harness.records.store import Store
from harness.specs import Spec
from tasks.mini.vqa import Sizes, ensure_vqa
from tests.support.paths import ROOT

COVERED = (
    "harness.backbones",
    "harness.backbones.base",
    "harness.backbones.block",
    "harness.backbones.bridgetower",
    "harness.backbones.bridgetower.config",
    "harness.backbones.bridgetower.loading",
    "harness.backbones.bridgetower.model",
    "harness.backbones.checkpoints",
    "harness.backbones.folded",
    "harness.backbones.folded_sublayers",
    "harness.backbones.folding",
    "harness.backbones.four_bits",
    "harness.backbones.generative",
    "harness.backbones.inputs",
    "harness.backbones.kernels",
    "harness.backbones.llava",
    "harness.backbones.llava.block",
    "harness.backbones.llava.loading",
    "harness.backbones.llava.model",
    "harness.backbones.llava.processor",
    "harness.backbones.masks",
    "harness.backbones.meter",
    "harness.backbones.meter.assembled",
    "harness.backbones.meter.assembling",
    "harness.backbones.meter.block",
    "harness.backbones.meter.config",
    "harness.backbones.meter.efficientnet_lite",
    "harness.backbones.meter.encoders",
    "harness.backbones.meter.folded",
    "harness.backbones.meter.loading",
    "harness.backbones.meter.model",
    "harness.backbones.meter.pairs",
    "harness.backbones.meter.processor",
    "harness.backbones.pairs",
    "harness.backbones.triton_kernels",
    "harness.backbones.vilt",
    "harness.backbones.vilt.block",
    "harness.backbones.vilt.folded",
    "harness.backbones.vilt.loading",
    "harness.backbones.vilt.model",
    "harness.backbones.vilt.processor",
    "harness.digests",
    "harness.experiment",
    "harness.experiment.build",
    "harness.experiment.cell",
    "harness.experiment.plan",
    "harness.experiment.published",
    "harness.experiment.search_stage",
    "harness.measure",
    "harness.measure.live",
    "harness.measure.memory",
    "harness.training",
    "harness.training.blocks",
    "harness.training.checkpoint",
    "harness.training.conversion",
    "harness.training.encoder_cache",
    "harness.training.encoding_store",
    "harness.training.fabric",
    "harness.training.loop",
    "harness.training.microbatch",
    "harness.training.model",
    "harness.training.normalized",
    "harness.training.optim",
    "harness.training.ranks",
    "harness.training.search",
    "harness.training.seeds",
    "methods",
    "methods.adapter",
    "methods.adapters_library",
    "methods.alignment",
    "methods.bandit",
    "methods.bandit_search",
    "methods.base",
    "methods.bitfit",
    "methods.bottleneck",
    "methods.classifier",
    "methods.clip_score",
    "methods.das",
    "methods.das_decision",
    "methods.das_decoder",
    "methods.decision",
    "methods.decoder_adapters",
    "methods.decoder_blocks",
    "methods.decoder_forms",
    "methods.decoder_search",
    "methods.eas",
    "methods.eas_adapters",
    "methods.eas_merging",
    "methods.eas_meter",
    "methods.eas_vilt",
    "methods.frame",
    "methods.full",
    "methods.lora",
    "methods.lst",
    "methods.option_checks",
    "methods.parallel",
    "methods.peft_library",
    "methods.peft_tuners",
    "methods.prompts",
    "methods.pumer",
    "methods.recipes",
    "methods.reducing_meter",
    "methods.reducing_vilt",
    "methods.roe",
    "methods.roe_blocks",
    "methods.roe_layouts",
    "methods.roe_schedule",
    "methods.skip",
    "methods.skip_choices",
    "methods.skip_decision",
    "methods.skipping",
    "methods.token_attention",
    "methods.token_merging",
    "methods.token_reduction",
    "methods.tome",
    "methods.visual_prompt",
    "tasks",
    "tasks.answers",
    "tasks.base",
    "tasks.classification",
    "tasks.classification.columns",
    "tasks.classification.label_files",
    "tasks.classification.scoring",
    "tasks.classification.task",
    "tasks.data",
    "tasks.data.augment",
    "tasks.data.batches",
    "tasks.data.columns",
    "tasks.data.decoding",
    "tasks.data.delivery",
    "tasks.data.file_digests",
    "tasks.data.files",
    "tasks.data.image_cache",
    "tasks.data.image_folder",
    "tasks.data.image_sizes",
    "tasks.data.images",
    "tasks.data.loader",
    "tasks.data.subsets",
    "tasks.data.tokens",
    "tasks.heads",
    "tasks.nlvr",
    "tasks.nlvr.files",
    "tasks.nlvr.scorer",
    "tasks.nlvr.scoring",
    "tasks.nlvr.task",
    "tasks.nlvr2",
    "tasks.nlvr2.files",
    "tasks.nlvr2.scorer",
    "tasks.nlvr2.scoring",
    "tasks.nlvr2.task",
    "tasks.pope",
    "tasks.pope.files",
    "tasks.pope.scorer",
    "tasks.pope.scoring",
    "tasks.pope.task",
    "tasks.resumable_scores",
    "tasks.retrieval",
    "tasks.retrieval.batches",
    "tasks.retrieval.columns",
    "tasks.retrieval.files",
    "tasks.retrieval.scorer",
    "tasks.retrieval.scoring",
    "tasks.retrieval.task",
    "tasks.scienceqa",
    "tasks.scienceqa.files",
    "tasks.scienceqa.scorer",
    "tasks.scienceqa.scoring",
    "tasks.scienceqa.task",
    "tasks.scorer",
    "tasks.snli_ve",
    "tasks.snli_ve.files",
    "tasks.snli_ve.scorer",
    "tasks.snli_ve.scoring",
    "tasks.snli_ve.task",
    "tasks.vqa",
    "tasks.vqa.columns",
    "tasks.vqa.files",
    "tasks.vqa.scorer",
    "tasks.vqa.scoring",
    "tasks.vqa.task",
)
"""Change this list knowingly: results do not become stale by a change in what is not on it."""


def test_covered_modules_are_listed() -> None:
    built_in = [
        registry.locate(kind, name).partition(":")[0]
        for kind in registry.BUILT_IN
        for name in registry.names(kind)
    ]
    assert sorted(reachable([RUN, *built_in], NOT_COVERED)) == list(COVERED)
    # What is not covered would be otherwise: an entry that leaves nothing out is a mistake.
    everything = reachable([RUN, *built_in])
    assert [name for name in NOT_COVERED if name.removesuffix(".*") not in everything] == []


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ("harness/experiment/cell.py", {"run"}),
        ("harness/training/encoder_cache.py", {"run"}),
        ("harness/training/seeds.py", {"run"}),
        ("harness/training/fabric.py", {"run"}),
        ("harness/measure/live.py", {"run"}),
        ("tasks/data/loader.py", {"run"}),
        ("methods/das.py", {"method"}),
        ("methods/bottleneck.py", {"method"}),
        ("tasks/vqa/scoring.py", {"task"}),
        ("harness/backbones/vilt/processor.py", {"backbone"}),
        ("harness/backbones/vilt/loading.py", {"backbone"}),
        ("harness/backbones/meter/processor.py", set()),
        ("methods/lora.py", set()),
        ("harness/measure/flops.py", set()),
        ("harness/registry.py", set()),
        ("tasks/mini/world.py", set()),
    ],
)
def test_change_of_code_is_reported_by_part(
    changed: str, parts: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = registry.resolve_backbone("vilt-mini")(BackboneOptions())
    method, task = registry.build_method(Spec("das")), registry.build_task(Spec("vqa"))
    before = code_of(method, task, backbone, "vilt-mini")
    assert before.keys() == {"run", "method", "task", "backbone"}

    def edited(path: str, package: str, state: tuple[int, int]) -> Source:
        source = read_module(path, package, state)
        is_it = Path(path) == ROOT / changed
        return Source(f"{source.code}\nedited = True", source.imports) if is_it else source

    assert (ROOT / changed).is_file()
    monkeypatch.setattr(imports, "read_module", edited)
    after = code_of(method, task, backbone, "vilt-mini")
    assert {part for part in before if before[part] != after[part]} == parts


METHOD = """
from methods.base import Inserted, Method, freeze

from . import offsets

class ShiftTuning(Method):
    name, summary, source = "shift", "one trained offset after each block's mlp", "a test"

    def adapt(self, backbone, generator):
        freeze(backbone)
        for block in backbone.blocks:
            block.sequential["mlp"] = offsets.Shift(backbone.width)
"""

HELPER = """
import torch
from methods.base import Inserted

class Shift(Inserted):
    def __init__(self, width):
        super().__init__()
        self.offset = torch.nn.Parameter(torch.zeros(width))

    def forward(self, hidden):
        return hidden + self.offset
"""


@pytest.mark.timeout(900)  # two processes, on a machine that may be busy
def test_changed_helper_module_of_a_third_party_gives_another_cell(tmp_path: Path) -> None:
    site, results = tmp_path / "site", tmp_path / "results"
    package, metadata = site / "shifts", site / "shifts-1.0.dist-info"
    package.mkdir(parents=True)
    metadata.mkdir()
    (package / "__init__.py").write_text("")
    (package / "method.py").write_text(METHOD)
    (package / "offsets.py").write_text(HELPER)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: shifts\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[harness.methods]\nshift = shifts.method:ShiftTuning\n")
    data = ensure_vqa(tmp_path / "data", sizes=Sizes(60, 2, 6, 2, 6, 2))

    def run(*more: str) -> str:
        command = [sys.executable, "-m", "harness", "run", "--methods", "shift", "--tasks", "vqa"]
        settings = [
            "--data-root",
            str(data),
            "--results",
            str(results),
            "--epochs",
            "1",
            "--batch-size",
            "16",
        ]
        done = subprocess.run(
            [*command, *settings, "--in-process", *more],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": f"{ROOT}:{site}",
                "OMP_NUM_THREADS": "1",
                "HARNESS_CACHE": str(tmp_path / "cache"),
            },
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run()
    (record,) = Store(results).records()
    assert record.status == "finished"
    (package / "offsets.py").write_text(HELPER.replace("torch.zeros", "torch.ones"))
    plan = run("--dry-run")
    assert "1 of 1 cell to run" in plan
    assert " stale " in plan
    assert f"harness adopt {results}" in plan
