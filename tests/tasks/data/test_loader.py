"""Batches: order, sharding, padding and caching, independent of how images are decoded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from harness.errors import UserError
from tasks.base import Batch, Example
from tasks.data import images as images_module
from tasks.data.batches import pad_text, plan_batches, stack_images
from tasks.data.image_cache import ImageCache
from tasks.data.loader import Loader
from tests.support.word_processor import TASK, WordProcessor


def make_examples(folder: Path, count: int, sizes: Sequence[tuple[int, int]] = ((4, 4),)) -> list[Example]:
    """Example k has a text of 1 + k % 5 letters and image k, of constant grey level k + 1."""
    examples = []
    for k in range(count):
        path = folder / f"{k}.png"
        Image.new("RGB", sizes[k % len(sizes)], (k + 1, k + 1, k + 1)).save(path)
        examples.append(Example(str(k), "x" * (1 + k % 5), (path,), k, str(k)))
    return examples


def ids(loader: Loader) -> list[tuple[str, ...]]:
    return [batch.ids for batch in loader]


def same(left: Batch, right: Batch) -> bool:
    ours, theirs = left.inputs[0], right.inputs[0]
    pairs = [
        (ours.pixels, theirs.pixels),
        (ours.input_ids, theirs.input_ids),
        (ours.image_sizes, theirs.image_sizes),
        (ours.text_mask, theirs.text_mask),
    ]
    return left.ids == right.ids and all(
        a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs
    )


counts = st.integers(0, 60)


@given(
    count=counts,
    batch_size=st.integers(1, 7),
    world_size=st.integers(1, 4),
    kinds=st.integers(1, 5),
    seed=st.none() | st.integers(0, 9),
    bucket=st.booleans(),
)
def test_every_example_is_in_exactly_one_batch_of_one_rank(
    count: int, batch_size: int, world_size: int, kinds: int, seed: int | None, bucket: bool
) -> None:
    sort_keys = np.arange(count) * 7 % kinds if bucket else None
    plans = []
    for rank in range(world_size):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        plans.append(plan_batches(count, batch_size, sort_keys, generator, rank, world_size))
    seen = [index for plan in plans for batch in plan for index in batch]
    assert sorted(seen) == list(range(count))
    # Together, the shares of a step are the step of a single process.
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    for step, *shares in zip(plan_batches(count, batch_size, sort_keys, generator), *plans, strict=True):
        assert sorted(index for share in shares for index in share) == sorted(step)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert 1 <= len(step) <= batch_size


def test_batches_are_sorted_within_shuffled_windows() -> None:
    sort_keys = np.arange(4000) % 8
    plan = plan_batches(4000, 10, sort_keys, torch.Generator().manual_seed(0))
    mixed = sum(len(set(sort_keys[batch])) > 1 for batch in plan)
    # A window of 20 batches has at most 7 borders between 8 kinds.
    assert mixed <= 7 * 20
    assert mixed < len(plan) // 2
    firsts = [int(sort_keys[batch[0]]) for batch in plan]
    assert firsts != sorted(firsts)
    assert plan != plan_batches(4000, 10, sort_keys, torch.Generator().manual_seed(1))


def test_without_sort_keys_examples_are_simply_shuffled() -> None:
    generator = torch.Generator().manual_seed(3)
    plan = plan_batches(50, 8, None, generator)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(3)).tolist()
    assert [index for batch in plan for index in batch] == order


def test_evaluation_is_sorted() -> None:
    plan = plan_batches(5, 2, np.array([1, 0, 1, 0, 2]))
    assert plan == [[1, 3], [0, 2], [4]]


def test_batches_keep_the_token_ids_on_the_cpu_with_padding_marked(tmp_path: Path) -> None:
    loader = Loader(make_examples(tmp_path, 3), TASK, WordProcessor(), batch_size=3)
    (batch,) = loader
    (inputs,) = batch.inputs
    assert inputs.text_mask is not None
    assert inputs.host_ids is not None
    assert torch.equal(inputs.host_ids, inputs.input_ids.where(inputs.text_mask, -1))
    (part,) = batch.to(torch.device("meta")).inputs
    assert part.host_ids is inputs.host_ids
    _, last = batch.split(2)
    assert torch.equal(last.inputs[0].host_ids, inputs.host_ids[2:])  # type: ignore[arg-type]


def test_text_is_padded_to_the_longest_of_the_batch() -> None:
    ids, mask = pad_text([[5, 6, 7], [5]], pad_id=9)
    assert ids.tolist() == [[5, 6, 7], [5, 9, 9]]
    assert mask is not None
    assert mask.tolist() == [[True, True, True], [True, False, False]]
    assert mask.dtype == torch.bool
    assert pad_text([[5, 6], [7, 8]], pad_id=9)[1] is None


def test_images_are_padded_with_zero_after_normalising() -> None:
    images = [torch.full((3, 2, 4), 255, dtype=torch.uint8), torch.full((3, 4, 2), 255, dtype=torch.uint8)]
    pixels, sizes = stack_images(images, WordProcessor())
    assert pixels.shape == (2, 3, 4, 4)
    assert sizes is not None
    assert sizes.tolist() == [[2, 4], [4, 2]]
    assert sizes.dtype == torch.int64
    assert torch.all(pixels[0, :, :2] == 0.5)
    assert torch.all(pixels[0, :, 2:] == 0)
    assert torch.all(pixels[1, :, :, 2:] == 0)
    assert stack_images(images[:1] * 2, WordProcessor())[1] is None


def test_batches_hold_the_right_images_texts_and_targets(tmp_path: Path) -> None:
    examples = make_examples(tmp_path, 11, [(4, 4), (6, 4)])
    loader = Loader(examples, TASK, WordProcessor(), 4, shuffle=True)
    for batch in loader:
        (inputs,) = batch.inputs
        assert batch.targets is not None
        for row, example in enumerate(loader.examples_of(batch)):
            assert batch.targets[row] == example.target
            level = (example.target + 1) / 255 - 0.5
            height, width = (4, 4) if example.target % 2 == 0 else (4, 6)
            assert torch.all(inputs.pixels[row, :, :height, :width] == level)
            if inputs.image_sizes is not None:
                assert inputs.image_sizes[row].tolist() == [height, width]
            length = (
                inputs.input_ids.shape[1] if inputs.text_mask is None else int(inputs.text_mask[row].sum())
            )
            assert length == 1 + len(example.text)


def test_examples_with_two_images_give_two_inputs(tmp_path: Path) -> None:
    left, right = make_examples(tmp_path, 2, [(4, 4), (6, 6)])
    pair = Example("p", "x", (*left.images, *right.images), 0, "p")
    (batch,) = Loader([pair], TASK, WordProcessor(), 4)
    assert [tuple(inputs.pixels.shape) for inputs in batch.inputs] == [(1, 3, 4, 4), (1, 3, 6, 6)]


def test_bucketed_batches_of_equal_shapes_need_no_padding(tmp_path: Path) -> None:
    examples = make_examples(tmp_path, 20, [(4, 4), (6, 4), (4, 6), (6, 6), (5, 5)])
    for batch in Loader(examples, TASK, WordProcessor(), 4):
        assert batch.inputs[0].image_sizes is None
        assert batch.inputs[0].text_mask is None
    assert any(
        b.inputs[0].text_mask is not None for b in Loader(examples, TASK, WordProcessor(), 4, bucket=False)
    )


def test_order_depends_on_seed_and_epoch(tmp_path: Path) -> None:
    examples = make_examples(tmp_path, 23)
    cache = ImageCache(WordProcessor())

    def order(seed: int, epoch: int) -> list[tuple[str, ...]]:
        loader = Loader(examples, TASK, cache.processor, 4, seed=seed, shuffle=True, cache=cache)
        loader.set_epoch(epoch)
        return ids(loader)

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(*key)) for key in ((0, 0), (0, 1), (1, 0), (1, 1))}) == 4


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_can_start_at_any_batch_without_decoding_those_before(tmp_path: Path, workers: int) -> None:
    examples = make_examples(tmp_path, 23)
    loader = Loader(examples, TASK, WordProcessor(4), 4, shuffle=True, workers=workers)
    loader.set_epoch(3)
    whole = list(loader)
    for start in (0, 2, 5, 6):
        resumed = Loader(examples, TASK, WordProcessor(4), 4, shuffle=True, workers=workers)
        resumed.set_epoch(3, start)
        rest = list(resumed)
        assert all(same(a, b) for a, b in zip(whole[start:], rest, strict=True))
        assert len(resumed.cache) == sum(len(batch) for batch in rest)
        assert len(resumed) == 6


def test_loading_does_not_use_the_global_generator(tmp_path: Path) -> None:
    examples = make_examples(tmp_path, 9)
    state = torch.random.get_rng_state()
    for workers in (0, 1):
        list(Loader(examples, TASK, WordProcessor(), 4, shuffle=True, workers=workers))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_ranks_share_an_epoch_without_overlap(tmp_path: Path) -> None:
    examples = make_examples(tmp_path, 23, [(4, 4), (6, 4)])
    for shuffle in (True, False):
        loaders = [
            Loader(examples, TASK, WordProcessor(), 3, shuffle=shuffle, rank=rank, world_size=3)
            for rank in range(3)
        ]
        seen = [identifier for loader in loaders for batch in loader for identifier in batch.ids]
        assert sorted(seen, key=int) == [example.id for example in examples]
        assert [len(loader) for loader in loaders] == [8, 8, 8]


def test_a_rank_without_an_example_gets_an_empty_batch_if_steps_must_correspond(tmp_path: Path) -> None:
    examples = make_examples(tmp_path, 7, [(4, 4)])
    sizes = {
        every_step: [
            len(batch)
            for batch in Loader(
                examples, TASK, WordProcessor(), 3, rank=1, world_size=2, every_step=every_step
            )
        ]
        for every_step in (False, True)
    }
    assert sizes == {False: [1, 1], True: [1, 1, 0]}


@pytest.mark.parametrize("budget", [0, 2048])
def test_batches_do_not_depend_on_workers_or_cache(tmp_path: Path, budget: float) -> None:
    examples = make_examples(tmp_path, 14, [(4, 4), (6, 4)])
    # Several questions about one image, as in VQA.
    examples += [Example(f"again {e.id}", e.text, e.images, e.target, e.group) for e in examples]
    epochs = []
    for workers in (0, 2):
        cache = ImageCache(WordProcessor(), budget_mib=budget)
        loader = Loader(examples, TASK, cache.processor, 4, shuffle=True, workers=workers, cache=cache)
        assert len(loader) == 7
        epochs += [list(loader), list(loader)]
        assert len(cache) == (14 if budget else 0)
    for epoch in epochs[1:]:
        assert all(same(a, b) for a, b in zip(epochs[0], epoch, strict=True))


def test_images_are_decoded_once_and_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    load_rgb = images_module.load_rgb

    def counted(path: str) -> Image.Image:
        decoded.append(path)
        return load_rgb(path)

    monkeypatch.setattr(images_module, "load_rgb", counted)
    examples = make_examples(tmp_path, 30)
    processor = WordProcessor()
    cache = ImageCache(processor)
    training = Loader(examples, TASK, processor, 4, shuffle=True, cache=cache)
    list(training)
    training.set_epoch(1)
    list(training)
    list(Loader(examples, TASK, processor, 8, cache=cache))
    assert len(decoded) == 30
    assert processor.tokenized == 2 * 5  # five different texts, for each of two loaders


def test_cache_stays_within_its_budget(tmp_path: Path) -> None:
    examples = make_examples(tmp_path, 10)
    cache = ImageCache(WordProcessor(), budget_mib=3.5 * 48 / 2**20)
    loader = Loader(examples, TASK, cache.processor, 4, cache=cache)
    assert len(ids(loader)) == len(ids(loader)) == 3
    assert len(cache) == 3
    assert cache.used_bytes == 3 * 48


def test_cache_of_another_processor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="another processor"):
        Loader(make_examples(tmp_path, 1), TASK, WordProcessor(), 4, cache=ImageCache(WordProcessor(side=2)))


def test_shapes_come_from_headers_unless_they_are_fixed(tmp_path: Path) -> None:
    cache = ImageCache(WordProcessor(side=5))
    assert cache.shape("there is no such file") == (5, 5)
    (example,) = make_examples(tmp_path, 1, [(6, 4)])
    cache = ImageCache(WordProcessor())
    assert cache.shape(str(example.images[0])) == (4, 6)
    assert len(cache) == 0


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("side", [None, 4])
def test_bad_images_raise_or_are_left_out_and_counted(tmp_path: Path, workers: int, side: int | None) -> None:
    examples = make_examples(tmp_path, 9)
    examples[2].images[0].unlink()
    examples[5].images[0].write_text("no image")
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(examples[7].images[0])
    examples[7].images[0].write_bytes(examples[7].images[0].read_bytes()[:200])

    with pytest.raises(UserError, match=r"\d\.png: (no such|not a readable) image"):
        list(Loader(examples, TASK, WordProcessor(side), 4, workers=workers))

    cache = ImageCache(WordProcessor(side))
    loader = Loader(examples, TASK, cache.processor, 4, workers=workers, skip_bad_images=True, cache=cache)
    for _ in range(2):
        seen = sorted(identifier for batch in loader for identifier in batch.ids)
        assert seen == ["0", "1", "3", "4", "6", "8"]
        assert cache.skipped.keys() == {str(examples[index].images[0]) for index in (2, 5, 7)}


def test_a_batch_of_bad_images_is_left_out(tmp_path: Path) -> None:
    examples = make_examples(tmp_path, 4)
    for example in examples[:2]:
        example.images[0].unlink()
    loader = Loader(examples, TASK, WordProcessor(4), 2, bucket=False, skip_bad_images=True)
    assert ids(loader) == [("2", "3")]


def test_waiting_time_is_counted_and_stopping_early_is_safe(tmp_path: Path) -> None:
    examples = make_examples(tmp_path, 20)
    for workers in (0, 1):
        loader = Loader(examples, TASK, WordProcessor(), 2, workers=workers)
        assert loader.wait_seconds == 0
        for _ in loader:
            break
        assert loader.wait_seconds > 0
        assert len(ids(loader)) == 10


@settings(max_examples=20)
@given(
    count=st.integers(0, 40),
    batch_size=st.integers(1, 6),
    world_size=st.integers(1, 3),
    rank=st.integers(0, 2),
)
def test_length_is_the_number_of_batches(count: int, batch_size: int, world_size: int, rank: int) -> None:
    examples = [Example(str(k), "x" * (k % 4), (Path("none"),), 0, "") for k in range(count)]
    rank %= world_size
    for shuffle in (True, False):
        loader = Loader(
            examples, TASK, WordProcessor(4), batch_size, shuffle=shuffle, rank=rank, world_size=world_size
        )
        assert len(loader) == len(loader.batches())
