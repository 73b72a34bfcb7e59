from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.backbones.vilt.model import ViltBackbone
from harness.measure.errors import MeasurementError
from harness.measure.parameters import count_parameters
from methods.base import freeze
from tests.support.measured_models import Bottleneck, add_adapters_of_das, classifier


def adapt(backbone: ViltBackbone, skipped: int = 0) -> list[nn.Module]:
    freeze(backbone)
    for parameter in backbone.common_parameters():
        parameter.requires_grad_(True)
    return add_adapters_of_das(backbone, skipped)


def test_vilt_with_the_head_of_vqa_has_the_published_total(full_size: ViltBackbone) -> None:
    counts = count_parameters(full_size, classifier(768, 1536, 3129), [])
    assert counts.total == 117_588_537
    assert counts.common == 768 * 769 + 2 * 768


def test_vilt_on_nlvr2_has_a_third_token_type(full_size: ViltBackbone) -> None:
    full_size.widen_token_types(3)
    counts = count_parameters(full_size, classifier(1536, 1536, 2), [])
    assert counts.total == 113_962_754
    assert counts.common == 768 * 769 + 3 * 768


def test_published_total_of_vilt_retrieval_has_the_matching_head_beside_the_rank_head(
    full_size: ViltBackbone,
) -> None:
    rank, matching = nn.Linear(768, 1), nn.Linear(768, 2)
    assert count_parameters(full_size, nn.ModuleList([rank, matching]), []).total == 111_597_315
    assert count_parameters(full_size, rank, []).total == 111_597_315 - 2 * 769


@pytest.mark.parametrize("skipped", [0, 1, 4])
def test_active_adapters_of_das_on_vilt(full_size: ViltBackbone, skipped: int) -> None:
    with torch.device("meta"):
        modules = adapt(full_size, skipped)
    counts = count_parameters(full_size, nn.Linear(768, 1), modules)
    assert counts.method == counts.updated == 297_408 * skipped + 299_712 * (12 - skipped)
    assert counts.backbone == 111_595_008 - skipped * 7_087_872


def test_updated_parameters_of_full_tuning_exclude_those_that_every_method_trains(tiny: ViltBackbone) -> None:
    head = nn.Linear(32, 5)
    counts = count_parameters(tiny, head, [])
    everything = sum(p.numel() for p in tiny.parameters())
    assert counts.common == 32 * 33 + 2 * 32
    assert counts.updated == counts.backbone_tuned == everything - counts.common
    assert counts.backbone_frozen == counts.method == 0
    assert counts.trained == everything + 32 * 5 + 5


def test_tuned_biases_count_as_updated(tiny: ViltBackbone) -> None:
    freeze(tiny)
    for name, parameter in tiny.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    counts = count_parameters(tiny, nn.Linear(32, 5), [])
    biases = sum(p.numel() for n, p in tiny.named_parameters() if n.endswith("bias"))
    assert counts.updated == biases - 32  # the pooler's is common


def test_drawn_and_never_trained_parameters_are_not_updated(tiny: ViltBackbone) -> None:
    modules = adapt(tiny)
    trained = count_parameters(tiny, nn.Linear(32, 5), modules)
    for module in modules:
        assert isinstance(module, Bottleneck)
        module.down.requires_grad_(False)
    counts = count_parameters(tiny, nn.Linear(32, 5), modules)
    assert counts.method_frozen == 6 * (32 * 96 + 96)
    assert counts.updated == trained.updated - counts.method_frozen
    assert counts.total == trained.total


def test_a_parameter_in_two_modules_is_counted_once(tiny: ViltBackbone) -> None:
    modules = adapt(tiny)
    before = count_parameters(tiny, nn.Linear(32, 5), modules)
    first, second = modules[:2]
    assert isinstance(first, Bottleneck)
    assert isinstance(second, Bottleneck)
    second.down = first.down
    after = count_parameters(tiny, nn.Linear(32, 5), modules)
    assert before.method - after.method == before.total - after.total == 32 * 96 + 96


def test_a_module_outside_the_backbone_is_an_error(tiny: ViltBackbone) -> None:
    with pytest.raises(MeasurementError, match="not part of the backbone"):
        count_parameters(tiny, nn.Linear(32, 5), [Bottleneck(32, 4)])


def test_overlapping_groups_are_an_error(tiny: ViltBackbone) -> None:
    with pytest.raises(MeasurementError, match="both in method and in common"):
        count_parameters(tiny, nn.Linear(32, 5), [tiny.model.pooler])
