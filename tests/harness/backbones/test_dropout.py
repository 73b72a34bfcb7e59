"""Dropout in training where the published code has it, and nowhere in evaluation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.backbones.base import Backbone, BackboneOptions
from harness.registry import resolve_backbone
from harness.training.encoder_cache import is_untouched


def load(name: str, dropout: float | None) -> Backbone:
    backbone = resolve_backbone(name)(BackboneOptions(weights="random", dropout=dropout))
    backbone.requires_grad_(False)
    return backbone


def calls(backbone: Backbone) -> dict[str, int]:
    """How often each dropout module with a positive rate runs in one forward pass, by its path."""
    found: dict[str, int] = {}

    def count(path: str) -> object:
        def hook(*_: object) -> None:
            found[path] = found.get(path, 0) + 1

        return hook

    for path, module in backbone.named_modules():
        if isinstance(module, nn.Dropout) and module.p > 0:
            module.register_forward_hook(count(path))  # type: ignore[arg-type]
    side = int(backbone.processor.describe()["image_size"])
    backbone(backbone.example_inputs(2, 8, (side, side), torch.Generator().manual_seed(0)))
    return found


def test_vilt_drops_after_both_embeddings_and_three_times_in_a_block() -> None:
    found = calls(load("vilt-mini", 0.1).train())
    assert found.pop("model.embeddings.text_embeddings.dropout") == 1
    assert found.pop("model.embeddings.dropout") == 1
    blocks = {
        f"model.encoder.layer.{index}.{place}": times
        for index in range(12)
        for place, times in (("attention.output.dropout", 1), ("output.dropout", 2))
    }
    assert found == blocks  # not in the attention's weights
    assert calls(load("vilt-mini", None).train()) == {}


def test_meter_drops_in_the_text_encoder_too_whose_output_is_then_not_cached() -> None:
    published, own = load("meter-mini", 0.1), load("meter-mini", None)
    assert any(path.startswith("model.text_encoder.") for path in calls(published.train()))
    assert not any("encoder." in path for path in calls(own.train()))
    halves = ("text", "image")
    assert [is_untouched(published, name) for name in halves] == [False, True]
    assert [is_untouched(own, name) for name in halves] == [True, True]


@pytest.mark.parametrize("name", ["vilt-mini", "meter-mini"])
def test_dropout_changes_training_only(name: str) -> None:
    dropping, own = load(name, 0.5), load(name, None)
    own.load_state_dict(dropping.state_dict())
    side = int(own.processor.describe()["image_size"])
    inputs = own.example_inputs(2, 8, (side, side), torch.Generator().manual_seed(0))
    torch.testing.assert_close(dropping.eval()(inputs), own.eval()(inputs))
    assert not torch.equal(dropping.train()(inputs), dropping(inputs))
    assert dropping.digest() != own.digest()
