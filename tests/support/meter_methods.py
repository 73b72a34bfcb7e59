"""Every method, with options that fit the small METER of the tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from harness.backbones.base import Backbone
from methods.adapter import SequentialAdapter
from methods.adapters_library import AdaptersMethod
from methods.base import Method
from methods.bitfit import BitFit
from methods.classifier import Classifier
from methods.composed import Composed
from methods.das import DAS, DASOptions
from methods.eas import EAS, EASOptions
from methods.full import Full
from methods.lora import LoRA
from methods.lst import LST
from methods.parallel import ParallelAdapter
from methods.prompts import DeepPrompt, PromptOptions, ShallowPrompt
from methods.pumer import Pumer, PumerOptions
from methods.roe import RoE
from methods.skip import Skip
from methods.skip_decision import SkipDecision
from methods.tome import Tome
from methods.visual_prompt import TVP, VP, TVPOptions


def skip() -> Skip:
    """The baseline with a block of each stream skipped."""
    method = Skip()
    method.decide(SkipDecision(("text.0", "image.1"), (), "random"))
    return method


METHODS: dict[str, Callable[[], Method[Any]]] = {
    "full": Full,
    "classifier": Classifier,
    "bitfit": BitFit,
    "lora": LoRA,
    "adapter": SequentialAdapter,
    "parallel": ParallelAdapter,
    "shallow_prompt": lambda: ShallowPrompt(PromptOptions(tokens=3)),
    "deep_prompt": lambda: DeepPrompt(PromptOptions(tokens=3)),
    "das": lambda: DAS(DASOptions(blocks=("text.1", "image.0"))),
    "skip": skip,
    "eas": lambda: EAS(EASOptions(modules=("text-self.0", "image-cross.1"), dropout=0.0)),
    "roe": RoE,
    "vp": VP,
    "tvp": lambda: TVP(TVPOptions(tse=0.0)),
    "tome": Tome,
    "pumer": Pumer,
    "pumer, published": lambda: Pumer(PumerOptions(variant="published")),
    "lst": LST,
    "seq_bn": lambda: AdaptersMethod("seq_bn", {"reduction_factor": 8}),
    "double_seq_bn": lambda: AdaptersMethod("double_seq_bn", {"reduction_factor": 8}),
    "par_bn": lambda: AdaptersMethod("par_bn"),
    "scaled_par_bn": lambda: AdaptersMethod("scaled_par_bn"),
    "compacter": lambda: AdaptersMethod("compacter", {"reduction_factor": 8}),
    "ia3": lambda: AdaptersMethod("ia3"),
    "dora": lambda: AdaptersMethod("dora"),
    "adapters:lora": lambda: AdaptersMethod("lora"),
    "das+lora": lambda: Composed([DAS(DASOptions(blocks=("text.1", "image.0"))), LoRA()]),
    "adapter+bitfit+tome": lambda: Composed([SequentialAdapter(), BitFit(), Tome()]),
    "das+seq_bn": lambda: Composed(
        [DAS(DASOptions(blocks=("image.1",))), AdaptersMethod("seq_bn", {"reduction_factor": 8})]
    ),
    "das+deep_prompt": lambda: Composed(
        [DAS(DASOptions(blocks=("text.0",))), DeepPrompt(PromptOptions(tokens=3))]
    ),
}
every_method = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS.keys())


def randomize(method: Method[Any], backbone: Backbone) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in method.method_parameters(backbone):
            parameter.add_(torch.empty_like(parameter).normal_(std=0.1, generator=generator))
