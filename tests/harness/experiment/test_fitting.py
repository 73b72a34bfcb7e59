from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.backbones.base import Backbone
from harness.cli import call
from harness.errors import UserError
from harness.experiment.fitting import check_method, without_content
from harness.registry import build_method
from harness.specs import parse_spec
from methods.base import Method, NoOptions
from tasks.mini.vqa import Sizes, ensure_vqa
from tests.support.small_vilt import mini


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("das[skip=1000]", r"^das: skip must be from 0 to 11, as vilt-mini has 12 blocks; got 1000\.$"),
        ("das[blocks=99]", "has no block '99'"),
        ("skip[skip=12]", "skip must be from 0 to 11"),
        ("eas[skip=12]", "skip must be from 1 to 11"),
        ("lora[targets=zz]", "has no projection 'zz'"),
        ("pumer[layers=99]", "layers must be numbers from 0 to 11"),
        ("seq_bn[leave_out=99]", "leave_out must be layers from 0 to 11"),
        ("compacter[phm_dim=7]", "the adapters library refuses these settings"),
        ("bitfit+lora[targets=zz]", "has no projection 'zz'"),
    ],
)
def test_options_that_do_not_fit_the_backbone_are_refused(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_method(mini(), build_method(parse_spec(spec)))


def test_a_dry_run_refuses_them_on_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ensure_vqa(tmp_path / "data", sizes=Sizes(20, 2, 4, 2, 4, 2))
    words = ["run", "--methods", "lora,das[skip=12]", "--tasks", "vqa", "--data-root", str(root), "--dry-run"]
    assert call([*words, "--accelerator", "cpu", "--results", str(tmp_path / "results")]) == 2
    assert capsys.readouterr().err == (
        "harness: das: skip must be from 0 to 11, as vilt-mini has 12 blocks; got 12.\n"
    )
    assert not (tmp_path / "results").exists()


class ReadsWeights(Method[NoOptions]):
    """Cannot be adapted without the weights' content."""

    name = "reads"
    refuses = False

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        weight = next(backbone.parameters())
        if self.refuses and not weight.is_meta:
            raise UserError("reads: refused")
        if weight.is_meta:
            raise (UserError("reads: no weights") if self.refuses is None else RuntimeError("no content"))


def test_a_method_that_needs_the_content_of_weights_is_not_refused_without_it() -> None:
    method: Any = ReadsWeights(NoOptions())
    check_method(mini(), method)
    method.refuses = None
    check_method(mini(), method)


def test_the_backbone_is_not_changed() -> None:
    backbone = mini()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    check_method(backbone, build_method(parse_spec("lora")))
    after = backbone.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert all(tensor.is_meta for tensor in without_content(backbone).state_dict().values())
