"""Original checkpoints are loaded, adapted by every method, trained, saved and loaded again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness.backbones.base import Backbone, BackboneOptions
from harness.backbones.meter.config import MeterConfig
from harness.backbones.meter.loading import load_meter
from harness.backbones.vilt.loading import load_vilt
from harness.config import TrainingSettings
from harness.errors import UserError
from harness.registry import ADAPTERS_LIBRARY, BUILT_IN, build_method
from harness.specs import parse_specs
from harness.training.checkpoint import load_tuned_state, tuned_state
from harness.training.model import TaskModel
from harness.training.optim import build_optimizer
from methods.base import Method
from methods.skip_decision import SkipDecision
from tasks.base import Batch
from tests.support.meter_checkpoints import original_shapes, random_original, save_lightning
from tests.support.paths import SHARED

WIDTH, SIDE = 64, 32
SIZES = MeterConfig(
    hidden_size=WIDTH,
    num_attention_heads=1,
    num_hidden_layers=2,
    intermediate_size=96,
    text_layers=1,
    text_intermediate_size=80,
    vocab_size=50,
    max_position_embeddings=14,
    image_layers=1,
    image_intermediate_size=112,
    image_size=SIDE,
)
OPTIONS = {
    "shallow_prompt": "shallow_prompt[tokens=3]",
    "deep_prompt": "deep_prompt[tokens=3]",
    "das": "das[blocks=text.1+image.0]",
    "eas": "eas[modules=text-self.0+image-cross.1]",
    "tvp": "tvp[tse=0]",
    "compacter": "compacter[reduction_factor=8]",
    "compacter++": "compacter++[reduction_factor=8]",
}
"""Of methods whose defaults need a search or do not fit the small width."""
METHODS = [OPTIONS.get(name, name) for name in (*BUILT_IN["methods"], *ADAPTERS_LIBRARY)]


def of_method(text: str) -> Method[Any]:
    (spec,) = parse_specs(text)
    method = build_method(spec)
    if method.searches:  # a rule of block skipping
        method.decide(SkipDecision(("text.1", "image.0"), (), "random"))
    return method


class Answers:
    """A classification of the pooled feature, without data."""

    def forward(self, backbone: Backbone, head: nn.Module, batch: Batch) -> Tensor:
        logits: Tensor = head(backbone(batch.inputs[0]))
        return logits


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> BackboneOptions:
    """A checkpoint in the original's format."""
    path = tmp_path_factory.mktemp("weights") / "meter.ckpt"
    return replace(save_lightning(path, random_original(SIZES)), image_size=SIDE)


def model_of(method: Method[Any], options: BackboneOptions) -> TaskModel:
    """The checkpoint's model, adapted, with a head."""
    backbone = load_meter(options)
    method.adapt(backbone, torch.Generator().manual_seed(0))
    head = nn.Linear(backbone.feature_dim, 5)
    nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(1))
    nn.init.zeros_(head.bias)
    for parameter in [*backbone.common_parameters(), *head.parameters()]:
        parameter.requires_grad_(True)
    task: Any = Answers()
    return TaskModel(task, backbone, head).eval()


def assert_it_comes_through(text: str, options: BackboneOptions, learning_rate: float, folder: Path) -> None:
    """Adapt, train for four steps, save, load into a new model, and finalize; outputs must stay equal."""
    method = of_method(text)
    model = model_of(method, options)
    assert options.image_size is not None
    size = options.image_size, options.image_size
    inputs = model.backbone.example_inputs(2, 5, size, torch.Generator().manual_seed(1))
    batch, targets = Batch((inputs,), None, ("0", "1")), torch.tensor([2, 4])
    optimizer = build_optimizer(model, TrainingSettings(), learning_rate, 1e-2)
    losses = []
    for _ in range(4):
        loss = F.cross_entropy(model(batch), targets)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    with torch.no_grad():
        trained = model(batch)
    save_file(tuned_state(model), folder / "tuned.safetensors")
    del model, optimizer

    again = of_method(text)
    read = model_of(again, options)
    load_tuned_state(read, load_file(folder / "tuned.safetensors"))
    with torch.no_grad():
        assert torch.equal(read(batch), trained)
        again.finalize(read.backbone)
        torch.testing.assert_close(read(batch), trained, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("text", METHODS)
def test_checkpoint_is_adapted_trained_saved_and_read_again(
    text: str, original: BackboneOptions, tmp_path: Path
) -> None:
    assert_it_comes_through(text, original, 1e-3, tmp_path)


@pytest.fixture(scope="module")
def full_size_original(tmp_path_factory: pytest.TempPathFactory) -> BackboneOptions:
    """A checkpoint of 1.4 GB in the original's format, with the sizes of the published one."""
    path = tmp_path_factory.mktemp("weights") / "meter.ckpt"
    return replace(save_lightning(path, random_original(MeterConfig())), image_size=288)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", BUILT_IN["methods"])
def test_full_size_checkpoint_is_adapted_trained_saved_and_read_again(
    name: str, full_size_original: BackboneOptions, tmp_path: Path
) -> None:
    text = "das[blocks=text.2+text.4+image.1+image.3]" if name == "das" else name
    assert_it_comes_through(text, full_size_original, 1e-5, tmp_path)


@pytest.mark.parametrize("size", [224, 288, 384, 576])
@torch.no_grad()
def test_checkpoint_runs_at_the_published_sizes(size: int, original: BackboneOptions) -> None:
    backbone = load_meter(replace(original, image_size=size))
    streams = backbone.encode(backbone.example_inputs(1, 5, (size, size), torch.Generator().manual_seed(1)))
    assert streams["image"].hidden.shape == (1, 1 + (size // 16) ** 2, WIDTH)
    assert backbone.fuse(streams).isfinite().all()


def test_tensor_names_are_those_of_the_full_size_original() -> None:
    keys = SHARED / "checkpoints" / "meter_keys.txt"
    if not keys.is_file():
        pytest.skip(f"{keys} is not here")
    section = keys.read_text().split("# original METER")[1]
    listed = {line.split("\t")[0]: line.split("\t")[1] for line in section.splitlines()[1:]}
    ours = {name: str(shape) for name, shape in original_shapes(MeterConfig()).items()}
    heads = ("itm_score", "vqa_classifier")
    assert {k: v for k, v in ours.items() if not k.startswith(heads)} == {
        k: v for k, v in listed.items() if not k.startswith(heads)
    }


@pytest.mark.parametrize(
    ("load", "name", "message"),
    [
        (load_meter, "vilt", r"vilt\.ckpt: not an original METER checkpoint.*conv1\.weight is missing"),
        (load_vilt, "meter", r"meter\.ckpt: not an original ViLT checkpoint.*patch_embed.*is missing"),
    ],
    ids=["ViLT as METER", "METER as ViLT"],
)
@pytest.mark.parametrize("where", ["file", "folder"])
def test_checkpoint_of_the_other_backbone_is_recognised(
    load: Callable[[BackboneOptions], Backbone], name: str, message: str, where: str, tmp_path: Path
) -> None:
    path = tmp_path / f"{name}.ckpt"
    if name == "meter":
        save_lightning(path, random_original(SIZES))
    else:
        save_lightning(path, {"transformer.cls_token": torch.zeros(1, 1, WIDTH)})
    if where == "folder" and load is load_vilt:
        pytest.skip("a folder for ViLT is Hugging Face's")
    with pytest.raises(UserError, match=message):
        load(BackboneOptions(weights=str(path if where == "file" else tmp_path)))


def test_missing_and_unknown_keys_of_a_checkpoint_are_named(tmp_path: Path) -> None:
    state = random_original(SIZES)
    lacking = "cross_modal_text_layers.1.crossattention.output.LayerNorm.bias"
    options = save_lightning(tmp_path / "meter.ckpt", {k: v for k, v in state.items() if k != lacking})
    with pytest.raises(UserError, match=r"1 keys missing \(first: layers\.1\.crossattention"):
        load_meter(replace(options, image_size=SIDE))
    options = save_lightning(tmp_path / "meter.ckpt", {**state, "vit_model.visual.proj": torch.zeros(2)})
    with pytest.raises(UserError, match=r"1 unknown \(first: vit_model\.visual\.proj\)"):
        load_meter(replace(options, image_size=SIDE))
