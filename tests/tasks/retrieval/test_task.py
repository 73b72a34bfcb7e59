"""Retrieval: Karpathy's files, negatives, the rank head, and evaluation over all pairs."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import ViltConfig

from harness.analysis.score_files import score_files
from harness.backbones.inputs import Inputs
from harness.backbones.vilt.model import ViltBackbone
from harness.errors import UserError
from harness.registry import build_options
from tasks.base import Batch, Example
from tasks.data.image_cache import ImageCache
from tasks.data.loader import Loader
from tasks.resumable_scores import PartialScores
from tasks.retrieval.batches import NegativeSampler
from tasks.retrieval.files import read_captions
from tasks.retrieval.task import Retrieval, RetrievalOptions
from tests.support.paths import SHARED, needs_shared_data

SIDE = 8


def entry(image: int, split: str, captions: int = 2, **more: Any) -> dict[str, Any]:
    sentences = [{"sentid": 10 * image + k, "raw": "w" * (1 + (image + k) % 5)} for k in range(captions)]
    return {"imgid": image, "split": split, "filename": f"{image}.png", "sentences": sentences, **more}


def write(root: Path, *entries: Any, name: str = "flickr30k") -> Path:
    path = root / f"dataset_{name}.json"
    path.write_text(json.dumps({"images": entries, "dataset": name}))
    return path


class Characters:
    """A processor of 8 × 8 images whose tokens are characters."""

    max_text_length, pad_id, granularity = 12, 0, 4

    def tokenize(self, texts: Any) -> list[list[int]]:
        return [[1, *map(ord, text)][: self.max_text_length] for text in texts]

    def resize(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image.resize((SIDE, SIDE)))

    def normalize(self, images: Tensor) -> Tensor:
        return images.float() / 255

    def describe(self) -> dict[str, Any]:
        return {"image_size": SIDE}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(
        tmp_path,
        *(entry(k, "train", 5) for k in range(6)),
        *(entry(k, "val") for k in range(6, 9)),
        *(entry(k, "test", 1 + k % 3) for k in range(9, 14)),
        entry(14, "restval"),
    )
    (tmp_path / "flickr30k-images").mkdir()
    for k in range(15):
        Image.new("RGB", (16, 16), (16 * k, 0, 255 - 16 * k)).save(tmp_path / "flickr30k-images" / f"{k}.png")
    return tmp_path


def loader_of(root: Path, task: Retrieval, split: str, batch_size: int = 3) -> Loader:
    processor: Any = Characters()
    examples = task.load(root).splits[split]
    return Loader(examples, task, processor, batch_size, seed=1, shuffle=split == "train")


def test_each_caption_is_one_example(root: Path) -> None:
    task = Retrieval()
    data = task.load(root)
    assert [len(data.splits[split]) for split in ("train", "val", "test")] == [30, 6, 9]
    assert data.splits["val"][3] == Example("71", "w" * 4, (root / "flickr30k-images" / "7.png",), None, "7")
    assert task.majority_score(data) == pytest.approx(20)
    assert data.provenance["dataset"] == "flickr30k"
    assert data.provenance["splits"]["test"]["images missing"] == 0
    assert set(data.provenance["files"]) == {"dataset_flickr30k.json"}


def test_restval_is_training_data_of_coco_and_images_lie_in_their_folders(tmp_path: Path) -> None:
    splits = ("train", "restval", "val", "test")
    write(tmp_path, *(entry(k, s, filepath="val2014") for k, s in enumerate(splits)), name="coco")
    data = Retrieval().load(tmp_path)
    assert [example.group for example in data.splits["train"]] == ["0", "0", "1", "1"]
    assert data.splits["test"][0].images == (tmp_path / "val2014" / "3.png",)
    assert data.provenance["splits"]["train"]["official split"] == "train+restval"


def test_limits_count_images_and_keep_their_captions(root: Path) -> None:
    data = Retrieval(RetrievalOptions(limit_train=2, limit_test=3)).load(root)
    assert Counter(Counter(example.group for example in data.splits["train"]).values()) == {5: 2}
    assert len({example.group for example in data.splits["test"]}) == 3
    assert data.provenance["splits"]["train"]["part"] == "some of the images, by hash"


def test_epochs_are_chosen_on_some_images_of_val_and_all_of_test_are_ranked(tmp_path: Path) -> None:
    entries = [entry(image, split) for split in ("train", "val", "test") for image in _numbers(split)]
    write(tmp_path, *entries)
    data = Retrieval(RetrievalOptions(val_images=4)).load(tmp_path)
    images = {split: {each.group for each in data.splits[split]} for split in data.splits}
    assert {split: len(found) for split, found in images.items()} == {"train": 9, "val": 4, "test": 9}
    assert data.provenance["splits"]["val"]["part"] == "some of the images, by hash"
    fewer = Retrieval(RetrievalOptions(val_images=4, limit_val=2)).load(tmp_path)
    assert {each.group for each in fewer.splits["val"]} < images["val"]
    whole = Retrieval().load(tmp_path)
    assert whole.provenance["splits"]["val"]["part"] == "all"


def _numbers(split: str) -> range:
    start = 10 * ("train", "val", "test").index(split)
    return range(start, start + 9)


def test_dataset_is_found_or_chosen_by_option(root: Path) -> None:
    write(root, *(entry(k, split) for k, split in enumerate(("train", "val", "test"))), name="mini")
    with pytest.raises(UserError, match=r"contains dataset_flickr30k\.json, dataset_mini\.json; choose one"):
        Retrieval().load(root)
    assert Retrieval(RetrievalOptions(dataset="mini")).load(root).provenance["dataset"] == "mini"
    with pytest.raises(UserError, match=r"looked for dataset_coco\.json"):
        Retrieval(RetrievalOptions(dataset="coco")).load(root)
    with pytest.raises(UserError, match=r"no such folder\): contains no dataset_"):
        Retrieval().load(root / "nowhere")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (entry(3, "dev"), r"flickr30k\.json: images\[1\]: a split is one of train, val, test"),
        (entry(0, "test"), r"images\[1\]: imgid 0 appears twice"),
        (entry(3, "test") | {"sentences": []}, r"images\[1\]: 'sentences' is empty"),
        (
            entry(3, "test") | {"sentences": [{"sentid": 1}]},
            r"images\[1\]\.sentences\[0\]: missing key 'raw'",
        ),
        (entry(3, "test") | {"sentences": entry(0, "test")["sentences"]}, r"sentid 0 appears twice"),
        (entry(3, "test") | {"filename": 3}, r"images\[1\]: 'filename' must be a string, not 3"),
        ("x", r"images\[1\]: expected an object with 'split'"),
        (entry(3, "val"), r"no image of split test"),
    ],
)
def test_bad_files_are_named_by_place(tmp_path: Path, bad: Any, message: str) -> None:
    write(tmp_path, entry(0, "train"), bad, entry(5, "val"))
    with pytest.raises(UserError, match=message):
        Retrieval().load(tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"negatives": "0"}, {"pairs": "0"}, {"rank_head": "x"}, {"limit_val": "0"}]
)
def test_bad_options_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(UserError, match=f"retrieval: .*{next(iter(wrong))}"):
        build_options(RetrievalOptions, wrong, "retrieval")


def captions(images: int, each: int) -> list[Example]:
    # Captions of an image are not side by side here.
    return [Example(f"{i}-{k}", "", (), None, str(i)) for k in range(each) for i in range(images)]


def test_negatives_are_distinct_captions_of_other_images_and_uniform() -> None:
    examples = captions(4, 3)
    sampler = NegativeSampler(examples, 5, exclude_own=True, seed=0)
    seen: Counter[int] = Counter()
    for epoch in range(600):
        drawn = sampler.draw(examples[1], epoch)
        assert len(set(drawn)) == 5
        seen.update(drawn)
    assert set(seen) == {index for index, example in enumerate(examples) if example.group != "1"}
    assert min(seen.values()) > 0.8 * 600 * 5 / 9
    assert max(seen.values()) < 1.2 * 600 * 5 / 9


def test_published_negatives_may_be_the_images_own() -> None:
    examples = captions(2, 2)
    drawn = NegativeSampler(examples, 50, exclude_own=False, seed=0).draw(examples[0], 0)
    assert set(drawn) == {0, 1, 2, 3}


def test_negatives_are_a_function_of_seed_epoch_and_example() -> None:
    examples = captions(30, 2)
    one, same, other = (NegativeSampler(examples, 15, True, seed) for seed in (0, 0, 1))
    assert one.draw(examples[3], 2) == same.draw(examples[3], 2)
    assert len({tuple(s.draw(examples[k], e)) for s in (one, other) for k in (3, 4) for e in (0, 1)}) == 8


def test_too_few_captions_for_the_negatives_are_an_error() -> None:
    with pytest.raises(
        UserError, match="15 captions of other images are needed as negatives, but there are only 16"
    ):
        NegativeSampler(captions(8, 2), 15, True, 0)


def test_training_batches_put_the_right_caption_first(root: Path) -> None:
    task = Retrieval(RetrievalOptions(negatives=3))
    loader = loader_of(root, task, "train")
    batches = task.training_batches(loader, seed=5)
    tokens = {example.id: Characters().tokenize([example.text])[0] for example in loader.examples}
    seen = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        for batch in batches:
            (inputs,) = batch.inputs
            assert inputs.pixels.shape[0] == len(batch) == 3
            assert inputs.input_ids.shape[0] == 12
            assert batch.targets is not None
            assert batch.targets.tolist() == [0, 0, 0]
            for row, identifier in enumerate(batch.ids):
                ids = inputs.input_ids[4 * row]
                assert ids[ids != 0].tolist() == tokens[identifier]
            seen.append((epoch, batch.ids, inputs.input_ids.tolist()))
    assert len(seen) == 2 * len(batches) == 20
    again = task.training_batches(loader_of(root, task, "train"), seed=5)
    again.set_epoch(1)
    assert [(1, b.ids, b.inputs[0].input_ids.tolist()) for b in again] == seen[10:]
    again.set_epoch(1, 7)
    assert [(1, b.ids, b.inputs[0].input_ids.tolist()) for b in again] == seen[17:]
    again.set_epoch(1)
    # A copy that is set back leaves the original where it was.
    copied = copy.copy(again)
    copied.set_epoch(0)
    assert [batch.ids for batch in again] == [ids for _, ids, _ in seen[10:]]
    assert again.wait_seconds > 0


def test_pairs_repeat_each_image_for_its_texts() -> None:
    inputs = Inputs(
        torch.arange(6).view(6, 1), None, torch.arange(2.0).view(2, 1, 1, 1), torch.tensor([[1, 2], [3, 4]])
    )
    paired = inputs.paired()
    assert paired.pixels.flatten().tolist() == [0, 0, 0, 1, 1, 1]
    assert paired.image_sizes is not None
    assert paired.image_sizes[:, 0].tolist() == [1, 1, 1, 3, 3, 3]
    with pytest.raises(ValueError, match="5 texts for 2 images"):
        Inputs(inputs.input_ids[:5], None, inputs.pixels).paired()


def test_rank_head_starts_from_the_matching_row() -> None:
    weight, bias = torch.randn(2, 6), torch.randn(2)
    heads = {"itm_score.fc.weight": weight, "itm_score.fc.bias": bias}
    backbone: Any = SimpleNamespace(feature_dim=6, name="b", pretrained_heads=heads)
    state = torch.random.get_rng_state()
    head = Retrieval().build_head(backbone, torch.Generator())
    assert isinstance(head, nn.Linear)
    assert torch.equal(head.weight, weight[1:])
    assert torch.equal(head.bias, bias[1:])
    own = {"rank_output.weight": weight[:1], "rank_output.bias": bias[:1]}
    backbone.pretrained_heads = own
    assert torch.equal(next(Retrieval().build_head(backbone, torch.Generator()).parameters()), weight[:1])
    backbone.pretrained_heads = {}
    with pytest.raises(UserError, match=r"no matching head .* retrieval\[rank_head=random\]"):
        Retrieval().build_head(backbone, torch.Generator())
    drawn = Retrieval(RetrievalOptions(rank_head="random")).build_head(
        backbone, torch.Generator().manual_seed(1)
    )
    assert next(drawn.parameters()).abs().max() < 0.2
    assert torch.equal(torch.random.get_rng_state(), state)


def test_loss_is_cross_entropy_with_the_match_first() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0]])
    targets = Retrieval().collate_targets([captions(1, 1)[0]])
    assert targets is not None
    expected = -logits[0].softmax(0)[0].log()
    assert Retrieval().loss(logits, targets).item() == pytest.approx(expected.item())
    with pytest.raises(ValueError, match="needs negatives"):
        Retrieval().loss(torch.zeros(1, 1), targets)


def redness_and_length(batch: Batch) -> Tensor:
    """A score that depends on image and text only, not on their batch."""
    inputs = batch.inputs[0].paired()
    mask = inputs.input_ids != 0
    if inputs.text_mask is not None:
        assert torch.equal(mask, inputs.text_mask)
    red = inputs.pixels[:, 0].mean(dim=(1, 2))
    scores = torch.cos(40 * red * mask.sum(dim=1))
    return scores.view(batch.inputs[0].pixels.shape[0], -1)


@pytest.mark.parametrize("pairs", [1, 4, 11, 25, 512])
def test_evaluation_ranks_all_pairs_whatever_the_batches(root: Path, pairs: int, tmp_path: Path) -> None:
    task = Retrieval(RetrievalOptions(pairs=pairs))
    loader = loader_of(root, task, "test")
    advanced: list[int] = []
    sizes: list[int] = []

    def score(batch: Batch) -> Tensor:
        sizes.append(len(batch.inputs[0]))
        return redness_and_length(batch)

    predictions = task.evaluate(score, loader, advanced.append)
    assert max(sizes) <= pairs
    assert sum(sizes) == 5 * 9
    assert sum(advanced) == 9
    assert [each["id"] for each in predictions] == sorted(example.id for example in loader.examples)
    for each in predictions:
        example = next(one for one in loader.examples if one.id == each["id"])
        values = {image: np.cos(40 * (16 * image / 255) * (1 + len(example.text))) for image in range(9, 14)}
        own = values[int(example.group)]
        assert each["image_rank"] == sum(value >= own - 1e-6 for value in values.values())
        assert each["top_images"][each["image_rank"] - 1] == example.group
    # The same metrics from the file and Karpathy's captions.
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(f"{json.dumps(each)}\n" for each in predictions))
    scored = score_files("retrieval", path, root / "dataset_flickr30k.json")
    assert scored.metrics == pytest.approx(task.score(predictions))
    task.write_submission(predictions, path)
    assert score_files("retrieval", path, root / "dataset_flickr30k.json") == scored


def test_interrupted_evaluation_resumes_with_the_remaining_images(root: Path, tmp_path: Path) -> None:
    task = Retrieval(RetrievalOptions(pairs=11))
    expected = task.evaluate(redness_and_length, loader_of(root, task, "test"))
    path = tmp_path / "scores.npz"
    scored: list[int] = []

    def partial(key: str = "a model") -> PartialScores:
        return PartialScores(path, key, save_every=0)

    def interrupted(batch: Batch) -> Tensor:
        scored.append(len(batch.inputs[0]))
        if len(scored) == 4:
            raise KeyboardInterrupt
        return redness_and_length(batch)

    def counted(batch: Batch) -> Tensor:
        scored.append(len(batch.inputs[0]))
        return redness_and_length(batch)

    with pytest.raises(KeyboardInterrupt):
        task.evaluate(interrupted, loader_of(root, task, "test"), partial=partial())
    assert path.is_file()
    saved = path.read_bytes()
    advanced: list[int] = []
    scored.clear()
    again = task.evaluate(counted, loader_of(root, task, "test"), advanced.append, partial=partial())
    assert again == expected
    assert 0 < sum(scored) < 45
    assert sum(advanced) == 9
    assert not path.exists()
    # Rows of another model, or a file that is no file of rows, are not used.
    for content, key in ((saved, "another model"), (saved[:50], "a model"), (b"", "a model")):
        path.write_bytes(content)
        scored.clear()
        assert task.evaluate(counted, loader_of(root, task, "test"), partial=partial(key)) == expected
        assert sum(scored) == 45
    path.write_bytes(saved)
    scored.clear()
    other = Retrieval(RetrievalOptions(pairs=9))
    assert other.evaluate(counted, loader_of(root, other, "test"), partial=partial()) == expected
    assert sum(scored) == 45


def test_partial_scores_are_saved_regularly(tmp_path: Path) -> None:
    partial = PartialScores(tmp_path / "scores.npz", "a model", save_every=1000)
    partial.save("pairs", np.zeros((2, 3), np.float32), np.array([True, False]))
    assert not partial.path.exists()
    (tmp_path / "file").write_text("")
    broken = PartialScores(tmp_path / "file" / "scores.npz", "a model", save_every=0)
    with pytest.raises(UserError, match=r"scores\.npz: cannot be written"):
        broken.save("pairs", np.zeros((2, 3), np.float32), np.array([True, False]))


def test_an_image_that_cannot_be_read_is_named(root: Path) -> None:
    (root / "flickr30k-images" / "10.png").write_bytes(b"broken")
    task = Retrieval()
    with pytest.raises(UserError, match=r"10\.png: not a readable image"):
        task.evaluate(redness_and_length, loader_of(root, task, "test"))


def test_a_model_scores_a_pair_the_same_in_every_batch(root: Path) -> None:
    config = ViltConfig(
        vocab_size=256,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=SIDE,
        patch_size=4,
        max_position_embeddings=12,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    processor: Any = Characters()
    backbone = ViltBackbone(config, processor).eval()
    outcomes = [all_scores(root, backbone, pairs) for pairs in (1, 7, 512)]
    assert len(outcomes[0]) == 5 * 9
    assert torch.allclose(outcomes[0], outcomes[1], atol=1e-5)
    assert torch.allclose(outcomes[0], outcomes[2], atol=1e-5)


def all_scores(root: Path, backbone: ViltBackbone, pairs: int) -> Tensor:
    task = Retrieval(RetrievalOptions(rank_head="random", pairs=pairs))
    head = task.build_head(backbone, torch.Generator().manual_seed(0))
    seen: list[Tensor] = []

    def score(batch: Batch) -> Tensor:
        with torch.inference_mode():
            seen.append(task.forward(backbone, head, batch))
        return seen[-1]

    task.evaluate(score, loader_of(root, task, "test"))
    return torch.cat([scores.flatten() for scores in seen]).sort().values


@needs_shared_data
def test_real_flickr8k() -> None:
    captions = read_captions(SHARED / "flickr8k" / "dataset_flickr8k.json")
    assert [len(captions.of(split)) for split in ("train", "val", "test")] == [6_000, 1_000, 1_000]
    data = Retrieval(RetrievalOptions(limit_test=4)).load(SHARED / "flickr8k")
    assert [len(data.splits[split]) for split in ("train", "val", "test")] == [30_000, 5_000, 20]
    assert all(origin["images missing"] == 0 for origin in data.provenance["splits"].values())
    processor: Any = Characters()
    cache = ImageCache(processor)
    assert cache.shape(str(data.splits["test"][0].images[0])) == (SIDE, SIDE)
