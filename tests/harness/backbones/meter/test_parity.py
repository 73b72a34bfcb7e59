"""METER's forward pass against stored outputs of the original, and keys of original checkpoints against our modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.models.bridgetower.modeling_bridgetower import BridgeTowerBertCrossLayer

from harness.backbones.base import BackboneOptions
from harness.backbones.block import BlockOutput
from harness.backbones.checkpoints import Checkpoint
from harness.backbones.inputs import Inputs
from harness.backbones.meter.loading import UNUSED, build_meter, config_from_original, convert_original
from harness.backbones.meter.model import MeterBackbone
from tests.support.blocks import run

FOLDER = Path("../shared/data/checkpoints")
FIXTURE = FOLDER / "meter_orig_small.safetensors"
KEYS = FOLDER / "meter_keys.txt"

close = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(scope="module")
def original() -> dict[str, Tensor]:
    if not FIXTURE.is_file():
        pytest.skip(f"{FIXTURE} is not here")
    return load_file(FIXTURE)


@pytest.fixture(scope="module")
def checkpoint(original: dict[str, Tensor]) -> Checkpoint:
    tensors = {key.removeprefix("sd."): value for key, value in original.items() if key.startswith("sd.")}
    return convert_original(tensors, config_from_original(tensors))


@pytest.fixture(scope="module")
def converted(checkpoint: Checkpoint) -> MeterBackbone:
    return build_meter(checkpoint, BackboneOptions(image_size=64, text_length=12), "meter")


@pytest.fixture(scope="module")
def inputs(original: dict[str, Tensor]) -> Inputs:
    return Inputs(original["in.text_ids"], original["in.text_masks"].bool(), original["in.image_0"])


def watched(backbone: MeterBackbone) -> Iterator[tuple[str, nn.Module]]:
    """Modules, by the name under which the output of the original is stored."""
    model = backbone.model
    yield "full.text.embeddings", model.text_encoder.embeddings
    yield "full.vit.out", model.image_encoder.post_layernorm
    for index, layer in enumerate(model.text_encoder.encoder.layer):
        yield f"full.text.layer{index}", layer
    for index, layer in enumerate(model.image_encoder.encoder.layers):
        yield f"full.vit.resblock{index}", layer
    for block in backbone.blocks:
        stream, depth = block.name.split(".")
        yield f"full.fusion.{stream}{depth}", block


def hidden_of(out: Tensor | tuple[Tensor, ...] | BlockOutput) -> Tensor:
    """Hidden states in the output of one of our blocks or of a Hugging Face module."""
    if isinstance(out, BlockOutput):
        return out.tokens.hidden
    return out[0] if isinstance(out, tuple) else out


@torch.no_grad()
def test_every_stored_state_of_the_original_is_reproduced(
    original: dict[str, Tensor], converted: MeterBackbone, inputs: Inputs
) -> None:
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _module, _args, out: found.update({name: hidden_of(out)})

    handles = [module.register_forward_hook(keep(name)) for name, module in watched(converted)]
    after = converted.run_blocks(converted.encode(inputs))
    for handle in handles:
        handle.remove()
    found |= {f"full.{name}_feats": stream.hidden for name, stream in after.items()}
    found["full.cls_feats"] = converted.pool(after)
    stored = {key for key in original if key.startswith("full.") and not key.endswith(("_logits", "_loss"))}
    assert found.keys() == stored - {"full.rank_score"}
    for name, state in found.items():
        torch.testing.assert_close(state, original[name], **close, msg=lambda text, n=name: f"{n}: {text}")


def classify(heads: dict[str, Tensor], name: str, features: Tensor) -> Tensor:
    """Linear → LN → GELU → Linear."""
    weights = {key.removeprefix(f"{name}."): heads[key] for key in heads if key.startswith(f"{name}.")}
    hidden = F.linear(features, weights["0.weight"], weights["0.bias"])
    hidden = F.gelu(F.layer_norm(hidden, hidden.shape[-1:], weights["1.weight"], weights["1.bias"]))
    return F.linear(hidden, weights["3.weight"], weights["3.bias"])


def score(heads: dict[str, Tensor], name: str, features: Tensor) -> Tensor:
    return F.linear(features, heads[f"{name}.weight"], heads[f"{name}.bias"])


@torch.no_grad()
def test_logits_and_losses_of_the_originals_heads_are_reproduced(
    original: dict[str, Tensor], checkpoint: Checkpoint, converted: MeterBackbone, inputs: Inputs
) -> None:
    heads, features = checkpoint.heads, converted(inputs)
    second = converted(replace(inputs, pixels=original["in.image_1"], image_token_type=2))
    vqa = classify(heads, "vqa_classifier", features)
    nlvr2 = classify(heads, "nlvr2_classifier", torch.cat([features, second], dim=-1))
    # The original masks nothing in the captions it draws.
    drawn = [
        converted(replace(inputs, input_ids=ids, text_mask=None)) for ids in original["in.false_text_ids"]
    ]
    ranks = torch.cat([score(heads, "rank_output", each) for each in (features, *drawn)], dim=1)
    # Targets are not stored. These are the only ones that give the losses: for VQA the only soft targets of
    # three answers in all, from 0.3, 0.6, 0.9 and 1.
    answers = torch.zeros(2, 11)
    answers[0, 3], answers[0, 5], answers[1, 7] = 1.0, 0.3, 0.6
    found = {
        "vqa_logits": vqa,
        "vqa_loss": F.binary_cross_entropy_with_logits(vqa, answers)[None] * 11,
        "nlvr2_logits": nlvr2,
        "nlvr2_loss": F.cross_entropy(nlvr2, torch.tensor([1, 0]))[None],
        "snli_logits": classify(heads, "snli_classifier", features),
        "itm_logits": score(heads, "itm_score.fc", features),
        "rank_score": ranks[:, 0],
        "irtr_loss": F.cross_entropy(ranks, torch.zeros(2, dtype=torch.long))[None],
    }
    stored = {key for key in original if key.endswith(("_logits", "_loss", "_score"))}
    assert {f"full.{name}" for name in found} == stored
    for name, value in found.items():
        torch.testing.assert_close(value, original[f"full.{name}"], **close)


def full_size_keys() -> dict[str, dict[str, Tensor]]:
    """Original checkpoints on the meta device, by their heading in the list of keys."""
    if not KEYS.is_file():
        return {}
    found: dict[str, dict[str, Tensor]] = {}
    for line in KEYS.read_text().splitlines():
        if line.startswith("#"):
            current = found.setdefault(line.removeprefix("# original METER, ").partition(":")[0], {})
            continue
        key, shape = line.split("\t")
        size = [int(side) for side in shape.strip("()").split(",") if side]
        current[key] = torch.empty(size, device="meta")
    return found


@pytest.mark.parametrize(("task", "tensors"), full_size_keys().items() or [("none", {})])
def test_every_key_of_a_full_size_checkpoint_is_loaded_kept_or_unused_for_a_reason(
    task: str, tensors: dict[str, Tensor]
) -> None:
    if not tensors:
        pytest.skip(f"{KEYS} is not here")
    config = config_from_original(tensors)
    converted = convert_original(tensors, config)
    with torch.device("meta"):
        options = BackboneOptions(image_size=config.image_size)
        wanted = build_meter(replace(converted, state={}), options, task).model.state_dict()
    assert {key: value.shape for key, value in converted.state.items()} == {
        key: value.shape for key, value in wanted.items()
    }
    fused = {f"{kind}_proj" for kind in "qkv"}
    split = sum(key.split(".")[-2] in fused for key in converted.state)
    assert len(tensors) == len(converted.state) - split * 2 // 3 + len(converted.heads) + len(
        converted.unused
    )
    assert sum(tensors[key].numel() for key in converted.unused) == 631_040
    assert set(converted.unused.values()) <= set(UNUSED.values())


@torch.no_grad()
def test_a_block_is_bridgetowers_cross_layer(make_meter: Callable[[], MeterBackbone]) -> None:
    backbone = make_meter()
    block = backbone.blocks[3]
    layer = BridgeTowerBertCrossLayer(backbone.config.fusion()).eval()
    layer.load_state_dict(block.state_dict())
    hidden, context = torch.randn(2, 5, 64), torch.randn(2, 7, 64)
    mask = torch.zeros(2, 1, 1, 7)
    mask[1, ..., 4:] = torch.finfo(torch.float32).min
    theirs = layer(hidden, context, encoder_attention_mask=mask)[0]
    torch.testing.assert_close(run(block, hidden, None, context, mask), theirs, atol=1e-6, rtol=0)
