"""PuMer: the published counts, the behaviour of the authors' code, and that of the sound variant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness.backbones.base import Backbone
from harness.backbones.block import Tokens
from harness.backbones.masks import additive_mask
from harness.backbones.meter.model import MeterBackbone
from harness.errors import UserError
from harness.registry import build_method
from harness.specs import parse_specs
from methods.pumer import (
    PublishedReduction,
    Pumer,
    PumerOptions,
    SoundReduction,
    text_attention,
)
from methods.token_merging import cap_merges, share
from tests.support.small_vilt import mini
from tests.support.token_counts import (
    alone,
    count,
    full_size_vilt,
    lengths_read,
    matching_macs,
    meter_layer_macs,
    padded_inputs,
    tokens_read,
    vilt_block_macs,
)

Maker = Callable[..., MeterBackbone]


def reducing(backbone: Backbone, **options: object) -> Backbone:
    Pumer(PumerOptions(**options)).adapt(backbone, torch.Generator())  # type: ignore[arg-type]
    return backbone.eval()


def left(text: int, image: int, prune: float, merge: float, of_text: float) -> tuple[int, int]:
    """Text and image tokens after one reduction."""
    keep = image - share(prune, image)
    merged_text = cap_merges(share(of_text, text), text)
    return text - merged_text, keep - cap_merges(share(merge, image), keep)


VILT = {
    "vqa": (32, [(26, 87), (21, 52), (17, 31)], (2, 5, 8), 15.611, 8.357),
    "nlvr2": (40, [(32, 87), (26, 52), (21, 31)], (2, 5, 8), 16.344, 8.851),
    "snli_ve": (40, [(32, 87), (26, 52), (21, 31), (17, 19)], (2, 4, 6, 8), 16.344, 7.749),
}
METER = {
    "vqa": (384, 32, [(26, 347), (21, 209), (17, 125), (14, 75)], (0, 1, 2, 3), 37.902, 10.597),
    "snli_ve": (384, 40, [(32, 203), (26, 72), (21, 26), (17, 10)], (0, 1, 2, 3), 38.445, 5.244),
    "nlvr2": (288, 40, [(32, 114), (26, 41), (21, 15)], (1, 2, 3), 21.895, 7.178),
}


@pytest.mark.parametrize("variant", ["sound", "published"])
@pytest.mark.parametrize("task", VILT)
def test_published_tokens_and_macs_of_vilt(task: str, variant: str) -> None:
    text, after, layers, full, reduced = VILT[task]
    backbone, method = full_size_vilt(), Pumer(PumerOptions(settings=task, variant=variant))  # type: ignore[arg-type]
    method.adapt(backbone, torch.Generator())
    counts = []
    read = lengths_read(backbone, lambda: counts.append(count(backbone, method, (384, 384), text)))
    seen = [(text, 145), *after]
    expected = [seen[sum(layer < block for layer in layers)] for block in range(12)]
    assert read == expected
    ends = [*expected[1:], expected[-1]]
    blocks = sum(vilt_block_macs(sum(each), sum(end)) for each, end in zip(expected, ends, strict=True))
    assert round(12 * vilt_block_macs(text + 145, text + 145) / 1e9, 3) == full
    assert round(blocks / 1e9, 3) == reduced
    kept = [image - share(0.1, image) for _, image in seen[:-1]]
    matching = sum(map(matching_macs, kept)) + sum(matching_macs(words) for words, _ in seen[:-1])
    assert counts[0].macs["fusion"] == blocks + matching
    assert counts[0].macs["method"] == 0


@pytest.mark.parametrize("variant", ["sound", "published"])
@pytest.mark.parametrize("task", METER)
def test_published_tokens_and_macs_of_meter(task: str, variant: str, full_size_meter: Maker) -> None:
    side, text, after, layers, full, reduced = METER[task]
    backbone = full_size_meter(side)
    method = Pumer(PumerOptions(settings=task, variant=variant))  # type: ignore[arg-type]
    method.adapt(backbone, torch.Generator())
    found = []
    read = lengths_read(backbone, lambda: found.append(count(backbone, method, (side, side), text)))
    seen = [(text, 1 + (side // 16) ** 2), *after]
    before = [seen[sum(layer < depth for layer in layers)] for depth in range(6)]
    ends = [*before[1:], before[-1]]
    # An image layer reads the image tokens that its depth's text layer has left.
    assert read == [(words, end) for (words, _), (_, end) in zip(before, ends, strict=True)]
    fusion = unsequential = 0
    for (words, image), (words_left, image_left) in zip(before, ends, strict=True):
        fusion += meter_layer_macs(words, image, words_left)
        unsequential += meter_layer_macs(image_left, words, image_left)
        unsequential -= meter_layer_macs(image_left, words_left, image_left)
        fusion += meter_layer_macs(image_left, words_left, image_left)
    words, image = seen[0]
    whole = 6 * (meter_layer_macs(words, image, words) + meter_layer_macs(image, words, image))
    assert round(whole / 1e9, 3) == full
    assert round(fusion / 1e9, 3) == reduced
    prune = 0.2 if task == "vqa" else 0.3
    kept = [image - share(prune, image) for _, image in seen[:-1]]
    matching = sum(map(matching_macs, kept)) + sum(matching_macs(words) for words, _ in seen[:-1])
    # METER's own image layers read the text as it was before their depth, in the sound variant too.
    expected = fusion + matching + (unsequential if variant == "sound" else 0)
    assert found[0].macs["fusion"] == expected


def test_token_counts_equal_those_of_the_authors_code() -> None:
    assert left(32, 145, 0.1, 0.3, 0.2) == (26, 87)
    assert left(14, 75, 0.2, 0.2, 0.2) == (11, 45)


def test_missing_layers_of_a_short_backbone_are_ignored(make_meter: Maker) -> None:
    assert Pumer().setting(make_meter()).layers == (0, 1)
    assert Pumer(PumerOptions(settings="snli_ve")).setting(mini()).layers == (2, 4, 6, 8)


def one_pair(text: int, image: int, padded: int = 0) -> tuple[Tokens, Tokens, Tensor, Tensor, Tensor]:
    """Tokens whose states are their numbers, with different keys and attention 1 / (1 + j) on image token j."""
    words = torch.arange(float(text))[None, :, None]
    pixels = 100 + torch.arange(float(image))[None, :, None]
    generator = torch.Generator().manual_seed(0)
    keys = [torch.randn(1, count, 4, generator=generator) for count in (text, image)]
    weights = (1 / (1 + torch.arange(float(image)))).expand(1, 2, text, image)
    mask = None
    if padded:
        mask = additive_mask(torch.arange(text)[None] < text - padded, words)
    return Tokens(words, mask), Tokens(pixels), keys[0], keys[1], weights


def states(tokens: Tokens) -> list[float]:
    return tokens.hidden.flatten().tolist()


def test_sound_pruning_keeps_the_class_token_and_the_order() -> None:
    text, image, text_keys, image_keys, weights = one_pair(4, 6)
    reduce = SoundReduction(0.5, 0.0, 0.0, "mean_head", track_sizes=True)
    rising = weights.flip(-1)  # the later an image token, the more it is attended to
    words, pixels = reduce(text, image, text_keys, image_keys, rising)
    assert states(words) == states(text)
    assert states(pixels) == [100, 104, 105]
    published = PublishedReduction(0.5, 0.0, 0.0, "mean_head")
    assert states(published(text, image, text_keys, image_keys, rising)[1]) == [105, 104, 103]


def test_attention_of_padded_words_is_ignored() -> None:
    text, image, text_keys, image_keys, weights = one_pair(4, 5, padded=2)
    weights = weights.clone()
    weights[:, :, 2:] = torch.tensor([0.0, 0.0, 0.0, 0.0, 9.0])
    reduce = SoundReduction(0.4, 0.0, 0.0, "mean_head", track_sizes=True)
    assert states(reduce(text, image, text_keys, image_keys, weights)[1]) == [100, 101, 102]
    published = PublishedReduction(0.4, 0.0, 0.0, "mean_head")
    assert states(published(text, image, text_keys, image_keys, weights)[1]) == [104, 100, 101]


def test_scores_are_summed_over_words_and_averaged_over_heads() -> None:
    weights = torch.tensor([[[[0.2, 0.8], [0.4, 0.6], [1.0, 0.0]], [[0.9, 0.1], [0.1, 0.9], [0.8, 0.2]]]])
    torch.testing.assert_close(text_attention(weights, "mean_head"), torch.tensor([[1.7, 1.3]]))
    torch.testing.assert_close(text_attention(weights, "first_head"), torch.tensor([[1.6, 1.4]]))
    two = torch.tensor([2])
    torch.testing.assert_close(text_attention(weights, "mean_head", two), torch.tensor([[0.8, 1.2]]))
    torch.testing.assert_close(text_attention(weights, "first_head", two), torch.tensor([[0.6, 1.4]]))


def test_sizes_are_tracked_from_layer_to_layer() -> None:
    text, image, text_keys, image_keys, weights = one_pair(4, 5)
    image = replace(image, sizes=torch.tensor([[1.0, 3, 1, 1, 1]]))
    image_keys[0] = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    for track, mean, sizes in ((True, (3 * 101 + 102) / 4, [[1, 1, 4, 1]]), (False, 101.5, None)):
        reduce = SoundReduction(0.0, 0.2, 0.0, "mean_head", track_sizes=track)
        merged = reduce(text, image, text_keys, image_keys, weights)[1]
        assert states(merged) == [100, 104, mean, 103]
        assert (None if merged.sizes is None else merged.sizes.tolist()) == sizes


def test_words_merge_with_words_and_published_ones_with_padding_too() -> None:
    text, image, _, image_keys, weights = one_pair(6, 5, padded=2)
    # Words 0 (class token), 1, 2, 3; padding 4 is as similar to word 3 as can be, word 2 less so to word 1.
    degrees = torch.tensor([0.0, 40, 60, 150, 150, 270]).deg2rad()
    keys = torch.stack([degrees.cos(), degrees.sin()], dim=-1)[None]
    sound = SoundReduction(0.2, 0.0, 0.2, "mean_head", track_sizes=False)
    words, _ = sound(text, image, keys, image_keys, weights)
    assert words.mask is not None
    own = (words.mask == 0).flatten().tolist()
    assert [value for value, real in zip(states(words), own, strict=True) if real] == [0, 1.5, 3]
    published = PublishedReduction(0.2, 0.0, 0.2, "mean_head")
    words, _ = published(text, image, keys, image_keys, weights)
    assert states(words) == [0, 2, 1, 3.5, 5]
    assert words.mask is not None
    torch.testing.assert_close(words.mask.exp().flatten(), torch.tensor([1.0, 1, 1, 0.5, 0]))


def test_published_padding_of_images_can_be_kept_and_is_then_attended_to() -> None:
    text, image, text_keys, image_keys, weights = one_pair(4, 10)
    mask = additive_mask(torch.arange(10)[None] < 6, image.hidden)
    image = Tokens(image.hidden, mask)
    published = PublishedReduction(0.2, 0.0, 0.0, "mean_head")
    pixels = published(text, image, text_keys, image_keys, weights)[1]
    assert len(pixels) == 8
    assert pixels.mask is not None
    assert (pixels.mask == 0).all()
    sound = SoundReduction(0.2, 0.0, 0.0, "mean_head", track_sizes=False)
    pixels = sound(text, image, text_keys, image_keys, weights)[1]
    assert pixels.mask is not None
    assert (pixels.mask == 0).flatten().tolist() == [True] * 5 + [False] * 3
    assert states(pixels)[:5] == [100, 101, 102, 103, 104]


@pytest.mark.parametrize("meter", [False, True])
def test_published_steps_depend_on_pruning(meter: bool) -> None:
    text, image, text_keys, image_keys, weights = one_pair(6, 10)

    def lengths(prune: float, merge: float) -> tuple[int, int]:
        reduce = PublishedReduction(prune, merge, 0.2, "mean_head", meter=meter)
        return tuple(len(tokens) for tokens in reduce(text, image, text_keys, image_keys, weights))  # type: ignore[return-value]

    assert lengths(0.0, 0.3) == (6, 10)
    assert lengths(0.01, 0.3) == ((5, 7) if meter else (6, 10))  # .1 tokens are to be pruned: none
    assert lengths(0.2, 0.0) == (5, 10 if meter else 8)
    assert lengths(0.2, 0.3) == (5, 5)


def test_sound_steps_do_not_depend_on_each_other() -> None:
    text, image, text_keys, image_keys, weights = one_pair(6, 10)
    for shares, expected in (
        ((0.0, 0.3, 0.0), (6, 7)),
        ((0.2, 0.0, 0.0), (6, 8)),
        ((0.0, 0.0, 0.2), (5, 10)),
    ):
        reduce = SoundReduction(*shares, "mean_head", track_sizes=True)
        words, pixels = reduce(text, image, text_keys, image_keys, weights)
        assert (len(words), len(pixels)) == expected


def test_published_merging_protects_the_best_token_and_counts_before_pruning() -> None:
    text, image, text_keys, image_keys, weights = one_pair(3, 9)
    image_keys[:] = 1  # all alike: candidates are merged in order of score
    published = PublishedReduction(0.3, 0.3, 0.0, "mean_head")
    # 3 of 9 are dropped; of 6 kept, with scores in descending order 108, 107, … 103, 3 are to be merged: 2 may.
    pixels = published(text, image, text_keys, image_keys, weights.flip(-1))[1]
    assert states(pixels) == pytest.approx([108, (107 + 106 + 104) / 3, 105, 103])


def test_a_shorter_row_may_be_left_with_more_tokens_than_a_longer_one() -> None:
    """Because counts are rounded: 8 of 12 tokens are left, but 7 of 13."""
    text, image, text_keys, image_keys, weights = one_pair(4, 13)
    reduce = SoundReduction(0.2, 0.2, 0.0, "mean_head", track_sizes=True)
    both = Tokens(
        image.hidden.expand(2, -1, -1),
        additive_mask(torch.arange(13) < torch.tensor([[12], [13]]), image.hidden),
    )
    words = Tokens(text.hidden.expand(2, -1, -1))
    given = [each.expand(2, *each.shape[1:]) for each in (text_keys, image_keys, weights)]
    _, together = reduce(words, both, *given)  # type: ignore[arg-type]
    assert together.mask is not None
    for row, (length, left_over) in enumerate(((12, 8), (13, 7))):
        part = Tokens(image.hidden[:, :length])
        _, expected = reduce(text, part, text_keys, image_keys[:, :length], weights[..., :length])
        assert len(expected) == left_over
        assert (together.mask[row, 0, 0] == 0).tolist() == [place < left_over for place in range(8)]
        torch.testing.assert_close(together.hidden[row, :left_over], expected.hidden[0])
        assert together.sizes is not None
        assert expected.sizes is not None
        assert torch.equal(together.sizes[row, :left_over], expected.sizes[0])


PADDED = [
    {"layers": (1, 4, 7)},
    {"layers": (0, 11), "prune": 0.3, "merge": 0.5, "text": 0.4},
    {"layers": (2, 5), "sizes": False, "score": "first_head"},
]


@pytest.mark.parametrize("options", PADDED)
@torch.no_grad()
def test_padding_changes_nothing(options: dict[str, object]) -> None:
    backbone = reducing(mini(), **options)
    inputs = padded_inputs(backbone, 64, torch.tensor([[64, 64], [48, 64], [64, 32]]))
    together = backbone(inputs)
    for row in range(3):
        torch.testing.assert_close(together[row : row + 1], backbone(alone(inputs, row)), atol=1e-5, rtol=0)


@torch.no_grad()
def test_padding_changes_nothing_in_meter(make_meter: Maker) -> None:
    backbone = reducing(make_meter(), text=0.4)
    inputs = padded_inputs(backbone, 32)
    together = backbone(inputs)
    for row in range(3):
        torch.testing.assert_close(together[row : row + 1], backbone(alone(inputs, row)), atol=1e-5, rtol=0)


@torch.no_grad()
def test_padding_changes_the_published_variant() -> None:
    backbone = reducing(mini(), variant="published")
    inputs = padded_inputs(backbone, 64)
    assert (backbone(inputs)[2:] - backbone(alone(inputs, 2))).abs().max() > 1e-3


@pytest.mark.parametrize("variant", ["sound", "published"])
@torch.no_grad()
def test_model_without_pruning_and_merging_equals_the_plain_one(variant: str, make_meter: Maker) -> None:
    nothing = {"prune": 0.0, "merge": 0.0, "text": 0.0, "variant": variant}
    plain, backbone = mini().eval(), reducing(mini(), **nothing)
    inputs = plain.example_inputs(2, 5, (64, 64), torch.Generator().manual_seed(1))
    torch.testing.assert_close(backbone(inputs), plain(inputs), atol=1e-5, rtol=0)
    plain, backbone = make_meter().eval(), reducing(make_meter(), **nothing)  # type: ignore[assignment]
    inputs = plain.example_inputs(2, 5, (32, 32), torch.Generator().manual_seed(1))
    plain.sequential = variant == "published"  # type: ignore[assignment]
    torch.testing.assert_close(backbone(inputs), plain(inputs), atol=1e-5, rtol=0)


@torch.no_grad()
def test_meters_image_layer_reads_the_text_before_its_depth_or_the_updated_one(make_meter: Maker) -> None:
    for variant in ("sound", "published"):
        backbone = reducing(make_meter(), variant=variant)
        contexts: list[Tensor] = []
        backbone.blocks[2].register_forward_pre_hook(
            lambda _module, args, to=contexts: to.append(args[0].context.hidden)
        )
        inputs = backbone.example_inputs(1, 10, (32, 32), torch.Generator())
        texts = [tokens.hidden for tokens in tokens_read(backbone, lambda b=backbone, i=inputs: b(i))[::2]]
        assert torch.equal(contexts[0], texts[0 if variant == "sound" else 1])
        assert contexts[0].shape[1] == (10 if variant == "sound" else 8)


@torch.no_grad()
def test_pooled_tokens_are_never_merged(make_meter: Maker) -> None:
    backbone = reducing(make_meter(), prune=0.4, merge=0.5, text=0.4)
    inputs = padded_inputs(backbone, 32)
    after = backbone.run_blocks(backbone.encode(inputs))
    for tokens in after.values():
        assert tokens.sizes is not None
        assert (tokens.sizes[:, 0] == 1).all()


def test_tune_option_trains_or_freezes_the_backbone(make_meter: Maker) -> None:
    for backbone in (mini(), make_meter()):
        reducing(backbone)
        assert all(parameter.requires_grad for parameter in backbone.parameters())
        reducing_frozen = Pumer(PumerOptions(tune="classifier"))
        assert reducing_frozen.learning_rate_scale == 5
        assert Pumer().learning_rate_scale == 1
    frozen = reducing(mini(), tune="classifier")
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_options_are_written_in_a_spec() -> None:
    (spec,) = parse_specs("pumer[prune=.1,merge=.3,text=.2,layers=2+5+8]")
    assert build_method(spec).options == PumerOptions(0.1, 0.3, 0.2, (2, 5, 8))
    (spec,) = parse_specs("pumer[settings=snli_ve,variant=published]")
    assert build_method(spec).options == PumerOptions(settings="snli_ve", variant="published")


def test_published_scores_on_vqa_were_those_of_one_head(make_meter: Maker) -> None:
    def score(backbone: Backbone, **options: object) -> str:
        return Pumer(PumerOptions(**options))._reduction(backbone).score  # type: ignore[arg-type]

    assert score(mini(), variant="published") == "first_head"
    assert score(mini(), variant="published", settings="nlvr2") == "mean_head"
    assert score(make_meter(), variant="published") == "mean_head"
    assert score(mini()) == "mean_head"
    assert score(mini(), score="first_head") == "first_head"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prune": 1.0}, "prune must be at least 0 and below 1, got 1.0"),
        ({"text": -0.1}, "text must be at least 0"),
        ({"sizes": True, "variant": "published"}, "variant=published knows no token sizes"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PumerOptions(**options)  # type: ignore[arg-type]


def test_missing_layers_are_refused(make_meter: Maker) -> None:
    with pytest.raises(UserError, match=r"layers must be numbers from 0 to 11 on vilt-mini; got 2\+12"):
        reducing(mini(), layers=(2, 12))
    with pytest.raises(UserError, match="layers must be numbers from 0 to 1 on meter; got none"):
        reducing(make_meter(), layers=())
