"""Cached encodings equal newly computed ones and are never those of another model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.backbones.base import Backbone
from harness.backbones.inputs import Inputs
from harness.backbones.meter.model import MeterBackbone
from harness.backbones.meter.processor import MeterProcessor
from harness.config.sources import make_settings
from harness.config.types import CachePrecision
from harness.experiment.build import adapted_model, loader
from harness.experiment.cell import Outcome, run_cell
from harness.experiment.plan import Cell, build_cell, build_testbed, open_encodings
from harness.records.record import TrainingCost
from harness.specs import parse_spec
from harness.training import encoder_cache
from harness.training.encoder_cache import CachedEncoder, cached_encoding, encoder_digest, is_untouched
from harness.training.encoding_store import Budgets, EncodingStore
from harness.training.fabric import make_fabric
from harness.training.loop import State, predict, train_epoch
from harness.training.optim import build_optimizer, build_schedule
from methods.base import Inserted
from tasks.data.image_cache import ImageCache
from tasks.mini.vqa import Sizes, ensure_vqa
from tests.support.meter_methods import METHODS

Maker = Callable[..., MeterBackbone]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Number of texts and images that METER's encoders have processed."""
    seen: Counter[str] = Counter()
    for name in ("encode_text", "encode_image"):
        plain = getattr(MeterBackbone, name)

        def counted(self: Any, rows: Tensor, *more: Any, name: str = name, plain: Any = plain) -> Tensor:
            seen[name] += len(rows)
            result: Tensor = plain(self, rows, *more)
            return result

        monkeypatch.setattr(MeterBackbone, name, counted)
    return seen


def memory() -> EncodingStore:
    return EncodingStore(Budgets(100, 0))


def frozen(make_meter: Maker) -> MeterBackbone:
    """A backbone with frozen encoders, whose digest was computed from the loaded weights, as in a plan."""
    backbone = make_meter().requires_grad_(False)
    backbone.digest()
    return backbone


def padded_inputs(lengths: Sequence[int] = (3, 5, 5, 8), images: Sequence[int] = (0, 1, 0, 2)) -> Inputs:
    """Texts of these lengths and these pictures, with the keys that a loader gives them."""
    generator = torch.Generator().manual_seed(3)
    pictures = torch.randn(3, 3, 32, 32, generator=generator)
    ids = torch.ones(len(lengths), max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(3, 50, (length,), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return Inputs(ids, mask, pictures[list(images)], image_keys=tuple(bytes([k]) for k in images))


def only(inputs: Inputs, rows: Sequence[int]) -> Inputs:
    """Some rows, with their padding."""
    assert inputs.text_mask is not None
    assert inputs.image_keys is not None
    keys = tuple(inputs.image_keys[row] for row in rows)
    return replace(
        inputs,
        input_ids=inputs.input_ids[rows],
        text_mask=inputs.text_mask[rows],
        pixels=inputs.pixels[rows],
        image_keys=keys,
    )


@torch.no_grad()
@pytest.mark.parametrize("first", [[0, 1, 2, 3], [2, 0], [3]])
def test_cached_encodings_equal_new_ones_for_any_batches(first: list[int], make_meter: Maker) -> None:
    backbone, inputs = frozen(make_meter), padded_inputs()
    with cached_encoding(backbone, memory()):
        backbone.encoded(only(inputs, first))
        found = backbone.encoded(inputs)
    plain = backbone.encode(inputs)
    assert inputs.text_mask is not None
    mask = inputs.text_mask
    torch.testing.assert_close(found["text"].hidden[mask], plain["text"].hidden[mask], atol=1e-5, rtol=0)
    torch.testing.assert_close(found["image"].hidden, plain["image"].hidden, atol=1e-5, rtol=0)
    torch.testing.assert_close(backbone.fuse(found), backbone(inputs), atol=1e-5, rtol=0)
    assert [s.token_type for s in found.values()] == [s.token_type for s in plain.values()]


@torch.no_grad()
def test_cached_encodings_are_found_without_asking_the_device(
    make_meter: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device nothing can be asked for its value, which on a GPU would wait for it."""
    monkeypatch.setattr(encoder_cache, "_arithmetic", lambda device: "any")
    backbone, inputs = frozen(make_meter), padded_inputs()
    inputs = replace(inputs, host_ids=inputs.ids_on_host())
    with cached_encoding(backbone, memory()):
        backbone.encoded(inputs)
        found = backbone.to("meta").encoded(inputs.to(torch.device("meta")))
    assert [stream.hidden.device.type for stream in found.values()] == ["meta", "meta"]


@torch.no_grad()
def test_encoding_does_not_depend_on_the_rest_of_the_batch_beyond_rounding(make_meter: Maker) -> None:
    backbone, inputs = frozen(make_meter), padded_inputs((5,) * 40, (0,) * 40)
    found = []
    for rows in ([7], [7, 3], [1, 2, 7], list(range(40))):
        with cached_encoding(backbone, memory()):
            found.append(backbone.encoded(only(inputs, rows))["text"].hidden[rows.index(7)])
    for one in found:  # products over several threads are cut by the number of rows
        torch.testing.assert_close(one, found[0], atol=1e-6, rtol=0)


@torch.no_grad()
def test_each_distinct_text_and_image_is_computed_once(make_meter: Maker, calls: Counter[str]) -> None:
    backbone, inputs = frozen(make_meter), padded_inputs()
    repeated = only(inputs, [0, 1, 2, 3, 0, 1])
    with cached_encoding(backbone, memory()):
        for batch in (only(inputs, [1, 3]), repeated, inputs):
            backbone(batch)
    assert calls == {"encode_text": 4, "encode_image": 3}


@torch.no_grad()
def test_padding_of_a_text_does_not_change_its_key(make_meter: Maker, calls: Counter[str]) -> None:
    backbone, inputs = frozen(make_meter), padded_inputs()
    alone = Inputs(inputs.input_ids[:1, :3], None, inputs.pixels[:1], image_keys=(b"\0",))
    with cached_encoding(backbone, memory()):
        found = backbone.encoded(alone)["text"].hidden
        again = backbone.encoded(inputs)["text"].hidden[:1, :3]
    assert torch.equal(found, again)
    assert calls["encode_text"] == 4


@pytest.mark.parametrize("name", METHODS)
def test_encodings_are_cached_unless_the_method_trains_the_encoders(name: str, make_meter: Maker) -> None:
    backbone = make_meter()
    METHODS[name]().adapt(backbone, torch.Generator().manual_seed(0))
    with cached_encoding(backbone, memory()) as encoder:
        kept = set() if encoder is None else set(encoder.halves)
    expected = {"text", "image"}
    if name in ("vp", "tvp"):
        expected = {"text"}  # they change the pixels
    elif name == "full" or name.startswith("pumer"):
        expected = set()
    assert kept == expected
    assert backbone.encoder is None


class Change(Inserted):
    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, hidden: Tensor) -> Tensor:
        result: Tensor = self.inside(hidden) + 1
        return result


def insert(backbone: MeterBackbone) -> None:
    backbone.model.text_projection = Change(backbone.model.text_projection)


def train_a_bias(backbone: MeterBackbone) -> None:
    backbone.model.text_projection.bias.requires_grad_(True)


def hook(backbone: MeterBackbone) -> None:
    backbone.model.text_encoder.register_forward_hook(lambda *_: None)


def override(backbone: MeterBackbone) -> None:
    backbone.encode_text = lambda ids, mask: torch.zeros(*ids.shape, 64)  # type: ignore[method-assign]


def override_a_module(backbone: MeterBackbone) -> None:
    backbone.model.text_projection.forward = lambda hidden: hidden


@pytest.mark.parametrize("change", [insert, train_a_bias, hook, override, override_a_module])
def test_changing_one_encoder_disables_its_cache_only(
    change: Callable[[MeterBackbone], None], make_meter: Maker
) -> None:
    backbone = frozen(make_meter)
    assert is_untouched(backbone, "text")
    change(backbone)
    inputs = padded_inputs()
    with cached_encoding(backbone, memory()) as encoder:
        assert isinstance(encoder, CachedEncoder)
        assert set(encoder.halves) == {"image"}
        torch.testing.assert_close(backbone(inputs), backbone.fuse(backbone.encode(inputs)))


def test_a_trained_half_still_gets_its_gradient(make_meter: Maker) -> None:
    backbone = frozen(make_meter)
    train_a_bias(backbone)
    with cached_encoding(backbone, memory()):
        backbone(padded_inputs()).sum().backward()
    assert backbone.model.text_projection.bias.grad is not None


def test_overriding_encode_disables_the_cache(make_meter: Maker) -> None:
    backbone = frozen(make_meter)
    backbone.encode = backbone.encode  # type: ignore[method-assign]
    with cached_encoding(backbone, memory()) as encoder:
        assert encoder is None


def test_encodings_of_other_weights_are_not_used(make_meter: Maker) -> None:
    store, inputs = memory(), padded_inputs()
    found = []
    for change in (0.0, 0.5):
        backbone = frozen(make_meter)
        backbone.model.image_encoder.embeddings.class_embedding += change
        with cached_encoding(backbone, store), torch.no_grad():
            found.append(backbone.encoded(inputs)["image"].hidden)
        torch.testing.assert_close(found[-1], backbone.encode(inputs)["image"].hidden, atol=1e-5, rtol=0)
    assert not torch.allclose(found[0], found[1])
    assert len(store) == 4 + 2 * 3


def test_digest_covers_weights_code_and_configuration(make_meter: Maker) -> None:
    def digest(backbone: Backbone) -> str:
        return encoder_digest(backbone, "text", backbone.encoders()["text"])

    plain, same, other_weights = make_meter(), make_meter(), make_meter()
    with torch.no_grad():
        other_weights.model.text_projection.weight[0, 0] += 1e-6
    other_heads = make_meter(num_attention_heads=2)
    assert digest(plain) == digest(same)
    assert len({digest(plain), digest(other_weights), digest(other_heads)}) == 3


def test_encodings_of_trained_encoders_are_kept_during_one_evaluation(
    make_meter: Maker, calls: Counter[str]
) -> None:
    backbone, inputs, store = make_meter(), padded_inputs(), memory()
    backbone.eval()
    with torch.inference_mode():
        for _ in range(2):
            with cached_encoding(backbone, store, evaluation=True):
                first = backbone(inputs)
                assert torch.equal(first, backbone(inputs))
            backbone.model.text_projection.bias += 1
            assert not torch.allclose(first, backbone(inputs))
            calls.subtract(encode_text=4, encode_image=4)
    assert calls == {"encode_text": 8, "encode_image": 6}
    assert len(store) == 0


def test_encodings_of_trained_weights_are_not_kept_for_other_runs(make_meter: Maker) -> None:
    backbone, store = frozen(make_meter), memory()
    tuned = ["model.text_projection.bias", "model.text_pooler.dense.bias"]
    with cached_encoding(backbone, store, evaluation=True, tuned=tuned), torch.inference_mode():
        backbone(padded_inputs())
    assert len(store) == 3  # images


def test_encodings_from_evaluation_can_be_used_in_training(make_meter: Maker) -> None:
    backbone, inputs = make_meter(), padded_inputs()
    METHODS["adapter"]().adapt(backbone, torch.Generator().manual_seed(0))
    with cached_encoding(backbone, memory()):
        with torch.inference_mode():
            backbone.eval()(inputs)
        backbone.train()(inputs).sum().backward()
    assert all(p.grad is not None for p in backbone.blocks[0].sequential.parameters())


def test_augmented_images_are_computed_without_gradient_and_not_kept(
    make_meter: Maker, calls: Counter[str]
) -> None:
    backbone, store = frozen(make_meter), memory()
    augmented = replace(padded_inputs(), image_keys=None)
    backbone.train()
    with cached_encoding(backbone, store):
        for _ in range(2):
            streams = backbone.encoded(augmented)
            assert not streams["image"].hidden.requires_grad
    assert calls == {"encode_text": 4, "encode_image": 8}
    assert len(store) == 4
    assert backbone.model.image_encoder.training


def test_encoders_run_in_evaluation_mode_which_is_reset_afterwards(make_meter: Maker) -> None:
    class DiffersInTraining(nn.Module):
        def forward(self, states: Tensor) -> Tensor:
            return states + 1 if self.training else states

    backbone, inputs = frozen(make_meter), padded_inputs()
    backbone.model.text_projection = nn.Sequential(backbone.model.text_projection, DiffersInTraining())
    backbone.train()
    with cached_encoding(backbone, memory()):
        found = backbone.encoded(inputs)["text"].hidden
    assert all(module.training for module in backbone.model.modules())
    expected = backbone.eval().encode(inputs)["text"].hidden
    torch.testing.assert_close(found[inputs.text_mask], expected[inputs.text_mask], atol=1e-5, rtol=0)


@torch.no_grad()
def test_half_precision_only_rounds_encodings(make_meter: Maker) -> None:
    backbone, inputs = frozen(make_meter), padded_inputs()
    with cached_encoding(backbone, EncodingStore(Budgets(100, 0, None, "half"))):
        first, again = backbone(inputs), backbone(inputs)
    assert torch.equal(first, again)
    plain = backbone(inputs)
    assert 0 < (first - plain).abs().max() < 1e-2


@torch.no_grad()
@pytest.mark.parametrize("order", [("half", "full"), ("full", "half")])
def test_runs_of_other_cache_precision_share_a_folder_and_no_encodings(
    make_meter: Maker, tmp_path: Path, order: tuple[CachePrecision, CachePrecision]
) -> None:
    backbone, inputs = frozen(make_meter), padded_inputs()
    found = {}
    for precision in order:
        with cached_encoding(backbone, EncodingStore(Budgets(100, 1, tmp_path, precision))):
            found[precision] = backbone(inputs)
    with cached_encoding(backbone, EncodingStore(Budgets(100, 0, None, "full"))):
        assert torch.equal(found["full"], backbone(inputs))
    assert not torch.equal(found["half"], found["full"])


@torch.no_grad()
def test_precisions_do_not_mix(make_meter: Maker, calls: Counter[str]) -> None:
    backbone, inputs, store = frozen(make_meter), padded_inputs(), memory()
    with cached_encoding(backbone, store):
        backbone(inputs)
        with torch.autocast("cpu", torch.bfloat16):
            assert backbone.encoded(inputs)["image"].hidden.dtype == torch.bfloat16
        assert backbone.encoded(inputs)["image"].hidden.dtype == torch.float32
    assert calls["encode_image"] == 6


# The same in cells: METER small, on the generated questions.


class Letters(MeterProcessor):
    """Tokens are letters, as no vocabulary is available."""

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        rows = [[3 + ord(letter) % 47 for letter in text[:: len(text) // 6 or 1]] for text in texts]
        return [[0, *row[: self.max_text_length - 2], 2] for row in rows]


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_vqa(tmp_path_factory.mktemp("data"), sizes=Sizes(60, 2, 6, 3, 6, 3))


class Silent:
    def stage(self, name: str, total: int) -> None: ...

    def advance(self, count: int) -> None: ...

    def epoch(self, figures: Mapping[str, float]) -> None: ...


@pytest.fixture
def cell_with(
    questions: Path, make_meter: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Cell]]:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))

    def build(method: str, **changes: Any) -> Cell:
        backbone = make_meter()
        backbone.processor = Letters(None, 32, 16, 12)
        spec = parse_spec(method)
        chosen = {"backbone": "meter", "epochs": 2, "batch_size": 8, "accelerator": "cpu", **changes}
        settings = make_settings(methods=method, tasks="vqa", data_root=questions, **chosen)
        images = ImageCache(backbone.processor)
        store = open_encodings(settings, backbone)
        return build_cell(
            build_testbed(settings, settings.tasks[0], backbone, images, encodings=store), spec, 0
        )

    return build


def outcome_of(cell: Cell, folder: Path) -> Outcome:
    return run_cell(cell, folder, Silent())


def test_encoders_are_not_run_after_the_first_epoch(
    cell_with: Callable[..., Cell], calls: Counter[str]
) -> None:
    cell = cell_with("adapter")
    testbed = cell.testbed
    model = adapted_model(cell, cell.method())
    batches = loader(testbed, "train", 0, augmented=True)  # as training asks for them
    optimizer = build_optimizer(model, testbed.training, 1e-3, 1e-3)
    fabric = make_fabric(testbed.settings)
    wrapped, wrapped_optimizer = fabric.setup(model, optimizer)
    state = State(wrapped, wrapped_optimizer, build_schedule(optimizer, 100, 0.1))
    with cached_encoding(model.backbone, testbed.encodings):
        train_epoch(fabric, state, testbed.task, batches)
        texts = {example.text for example in batches.examples}
        pictures = {example.images for example in batches.examples}
        assert 0 < calls["encode_text"] <= len(texts)
        assert calls["encode_image"] == len(pictures)
        calls.clear()
        state.next_epoch()
        train_epoch(fabric, state, testbed.task, batches)
        assert state.cost.steps == 2 * len(batches)
        predict(fabric, wrapped, testbed.task, loader(testbed, "train"))
    assert not calls
    predict(fabric, wrapped, testbed.task, loader(testbed, "train"))
    assert calls["encode_image"] == len(batches.examples)


def test_cell_has_equal_results_without_with_a_new_and_with_an_existing_cache(
    cell_with: Callable[..., Cell], tmp_path: Path, calls: Counter[str]
) -> None:
    first = outcome_of(cell_with("lora"), tmp_path / "a")
    calls.clear()
    again = outcome_of(cell_with("lora"), tmp_path / "b")  # finds the first one's encodings on disk
    with_disk = calls.copy()
    off = outcome_of(cell_with("lora", cache_mib=0.0, cache_disk_gib=0.0), tmp_path / "c")
    assert first.predictions == again.predictions
    assert first.compute == again.compute == off.compute
    assert first.full_compute == again.full_compute == off.full_compute
    for name, tensor in first.tuned.items():
        assert torch.equal(tensor, again.tuned[name])
        torch.testing.assert_close(tensor, off.tuned[name], atol=1e-5, rtol=0)
    assert first.training["encoder_cache"]["halves"] == ["text", "image"]
    assert TrainingCost(**first.training).encoder_cache is not None
    assert first.training["encoder_cache"]["memory_mib"] > 0
    assert first.training["encoder_cache"]["disk_mib"] > 0
    assert again.training["encoder_cache"]["disk_mib"] == 0
    assert off.training["encoder_cache"] is None
    # What still runs is measured: memory over two training steps, and one pass each for the compute.
    assert with_disk["encode_image"] <= 2 * 8 + 2


def test_full_tuning_neither_uses_nor_writes_the_cache(
    cell_with: Callable[..., Cell], tmp_path: Path
) -> None:
    cell = cell_with("full", epochs=1)
    outcome = outcome_of(cell, tmp_path / "a")
    assert outcome.training["encoder_cache"] is None
    assert cell.testbed.encodings is not None
    assert len(cell.testbed.encodings) == 0
    assert not list((tmp_path / "cache").glob("encodings/*/*/*"))


def test_das_searches_on_cached_encodings(
    cell_with: Callable[..., Cell], tmp_path: Path, calls: Counter[str]
) -> None:
    cell = cell_with("das[skip=1]", epochs=1)
    outcome = outcome_of(cell, tmp_path / "a")
    assert outcome.search is not None
    distinct = {e.images for split in cell.testbed.data.splits.values() for e in split}
    assert calls["encode_image"] <= len(distinct) + 2 * 8 + 2


def test_half_precision_is_another_protocol(cell_with: Callable[..., Cell]) -> None:
    plain, half = cell_with("lora"), cell_with("lora", cache_precision="half")
    off = cell_with("lora", cache_mib=0.0, cache_disk_gib=0.0)
    assert plain.id == off.id != half.id
    assert half.testbed.protocol["cache_precision"] == "half"
    assert plain.testbed.protocol["cache_precision"] == off.testbed.protocol["cache_precision"] == "full"


def test_backbone_without_separate_encoders_is_not_cached() -> None:
    class Plain:
        encoder = None

        def encoders(self) -> dict[str, list[nn.Module]]:
            return {}

    backbone: Any = Plain()
    with cached_encoding(backbone, memory()) as encoder:
        assert encoder is None
    assert open_encodings(make_settings(methods="full", tasks="vqa"), backbone) is None
