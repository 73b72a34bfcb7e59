"""Image-text retrieval (Flickr30k, COCO, Flickr8k): every test image ranked against every test caption."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.backbones.base import Backbone
from harness.errors import UserError
from harness.files import write_atomically
from tasks.base import Batch, Data, Example, Prediction, Recipe, Share, SplitName, Task
from tasks.data.columns import Columns, groups_of, image_paths
from tasks.data.files import describe_images
from tasks.data.loader import Loader
from tasks.data.subsets import Limits, blanked, limited
from tasks.heads import HEAD_INITIAL_STD, blank_linear
from tasks.mini.retrieval import ensure_retrieval
from tasks.resumable_scores import PartialScores
from tasks.retrieval.batches import NegativeSampler, score_matrix
from tasks.retrieval.columns import load_captions
from tasks.retrieval.files import find_dataset
from tasks.retrieval.scorer import SCORER
from tasks.retrieval.scoring import chance_at_1, hit_at_1, rank
from tasks.scorer import Scorer

MATCHING = "itm_score.fc"
"""The pretrained matching head; its row 1 is "matches"."""


RANKING = "rank_output"


@dataclass(frozen=True)
class RetrievalOptions(Limits):
    """Options of retrieval. The limits count images; all captions of an image are kept.

    dataset: flickr30k, coco, flickr8k or another `dataset_{name}.json`; "auto": the only one there is.
    negatives: wrong captions that the right one is ranked against in training.
    exclude_own: negatives are distinct and of other images. False is the published draw, which may include the
        image's own captions.
    rank_head: "pretrained" starts from the matching head; "random" is for backbones without one.
    pairs: image-caption pairs per evaluation batch; bounds its memory.
    val_images: images of the validation split, by hash, on which the epoch is chosen; all of COCO's 5,000 would take
        as long to rank after each epoch as the test split. limit_val counts too.
    """

    dataset: str = "auto"
    negatives: int = 15
    exclude_own: bool = True
    rank_head: str = "pretrained"
    pairs: int = 512
    val_images: int = 1000

    def __post_init__(self) -> None:
        Limits.__post_init__(self)
        if self.negatives < 1 or self.pairs < 1:
            raise ValueError(f"negatives and pairs must be at least 1, not {self.negatives} and {self.pairs}")
        if self.val_images < 1:
            raise ValueError(f"val_images must be at least 1, not {self.val_images}")
        if self.rank_head not in ("pretrained", "random"):
            raise ValueError(f"rank_head must be pretrained or random, not '{self.rank_head}'")

    def limit_of(self, split: SplitName) -> int | None:
        """The largest number of images of a split; None: use all of it."""
        limit = Limits.limit_of(self, split)
        return min(self.val_images, limit or self.val_images) if split == "val" else limit


class Retrieval(Task[RetrievalOptions]):
    """Retrieval by a rank score of each image-caption pair, as in ViLT and METER; an example is a caption."""

    name: ClassVar[str] = "retrieval"
    title: ClassVar[str] = "Retrieval"
    version: ClassVar[int] = 1
    primary_metric: ClassVar[str] = "R@1"
    evaluates_splits: ClassVar[bool] = True
    scorer: ClassVar[Scorer] = SCORER
    Options: ClassVar[type[Any]] = RetrievalOptions
    later_options: ClassVar[tuple[str, ...]] = ("val_images",)
    recipe: ClassVar[Recipe] = Recipe(epochs=10, batch_size=256)
    # An example is 16 passes through the backbone, so 4 of them fill a batch.
    embedded_recipe: ClassVar[Recipe] = Recipe(epochs=2, batch_size=4)

    def load(self, root: Path) -> Data:
        """Read Karpathy's file. Images are opened later, by the loader.

        Raises `UserError` naming the file and place at fault.
        """
        captions = load_captions(find_dataset(root, self.options.dataset), root)
        # COCO's restval is training data in every published result; other data sets do not use it.
        train = ("train", "restval") if captions.dataset == "coco" else ("train",)
        official: dict[SplitName, tuple[str, ...]] = {"train": train, "val": ("val",), "test": ("test",)}
        splits: dict[str, Sequence[Example]] = {}
        origins: dict[str, dict[str, Any]] = {}
        images: dict[SplitName, list[str]] = {}
        for split, names in official.items():
            found = captions.of(*names)
            if not found:
                raise UserError(f"{captions.path}: no image of split {' or '.join(names)}")
            chosen = self._chosen(found, split)
            whole = len(chosen) == len(found) and getattr(self.options, f"limit_{split}") is None
            splits[split] = blanked(chosen, self.options.blank)
            images[split] = image_paths(chosen)
            origins[split] = {
                "official split": "+".join(names),
                "part": "all" if whole else "some of the images, by hash",
                "captions": len(splits[split]),
            }
        for split, described in describe_images(images).items():
            origins[split] |= described
        provenance = {"dataset": captions.dataset, "splits": origins, "files": captions.files}
        return Data(splits, provenance)

    @property
    def texts_per_example(self) -> int:
        """The right caption and its negatives."""
        return 1 + self.options.negatives

    def without_data(self) -> None:
        """Draw the rank head at random, as random weights have no matching head."""
        self.options = replace(self.options, rank_head="random")

    def embedded_data(self, cache: Path) -> Path:
        """The mini benchmark's pictures and descriptions, in Karpathy's format."""
        return ensure_retrieval(cache)

    def majority_score(self, data: Data) -> float | None:
        """`R@1` of a random order."""
        return chance_at_1(len(set(groups_of(data.splits["test"]))))

    def build_head(self, backbone: Backbone, generator: torch.Generator) -> nn.Module:
        """One rank score per pair, initialised with the matching row of the pretrained matching head (ViLT, METER)."""
        head = blank_linear(backbone.feature_dim, 1)
        if self.options.rank_head == "random":
            nn.init.normal_(head.weight, std=HEAD_INITIAL_STD, generator=generator)
            nn.init.zeros_(head.bias)
            return head
        heads = backbone.pretrained_heads
        with torch.no_grad():
            if f"{MATCHING}.weight" in heads:
                head.weight.copy_(heads[f"{MATCHING}.weight"][1:2])
                head.bias.copy_(heads[f"{MATCHING}.bias"][1:2])
            elif f"{RANKING}.weight" in heads:
                head.weight.copy_(heads[f"{RANKING}.weight"])
                head.bias.copy_(heads[f"{RANKING}.bias"])
            else:
                raise UserError(
                    f"{backbone.name}: its weights contain no matching head ({MATCHING}, {RANKING}) to initialise "
                    "the rank head with; retrieval[rank_head=random] draws one"
                )
        return head

    def training_batches(self, loader: Loader, seed: int) -> Loader:
        """Batches of which each caption is followed by its negatives.

        The text of a batch of B has B · (1 + negatives) rows, its images B: `forward` pairs them.
        """
        options = self.options
        sampler = NegativeSampler(loader.examples, options.negatives, options.exclude_own, seed)
        return loader.with_texts(sampler.draw)

    def forward(self, backbone: Backbone, head: nn.Module, batch: Batch) -> Tensor:
        """Rank scores `(B, T)` of each image with its T texts."""
        (inputs,) = batch.inputs
        scores: Tensor = head(backbone.forward_pairs(inputs))
        return scores.view(inputs.pixels.shape[0], -1)

    def collate_targets(self, examples: Sequence[Example]) -> Tensor | None:
        """Position of the right caption, which is the first: zeros `(B,)` int64."""
        return torch.zeros(len(examples), dtype=torch.int64)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy over the right caption and its negatives."""
        if logits.shape[1] < 2:
            raise ValueError("a training batch of retrieval needs negatives; see `training_batches`")
        return functional.cross_entropy(logits, targets)

    def evaluate(
        self,
        scores_of: Callable[[Batch], Tensor],
        loader: Loader,
        on_batch: Callable[[int], None] = lambda count: None,
        partial: PartialScores | None = None,
        share: Share = Share(),
    ) -> list[Prediction]:
        """Predictions of a whole split from all its pairs, ordered by example id.

        scores_of: the model on a batch `(B, T)`, float32 on the CPU.
        loader: gives the examples and the image cache; its batches are not used. Images that cannot be read are left
            out with their captions, if it leaves such out.
        on_batch: called with the progress since the last call, as a number of captions.
        partial: finished rows of an interrupted evaluation; new ones are saved there.
        """
        readable = loader.readable()
        if not readable:
            raise UserError("retrieval: no image of the split can be read")
        examples = [loader.examples[index] for index in readable]
        tokens = loader.tokens if len(readable) == len(loader.examples) else loader.tokens.of(readable)
        images = len({example.group for example in examples})
        done = 0

        def advance(pairs: int) -> None:
            nonlocal done
            before, done = done, done + pairs
            on_batch(done // images - before // images)

        scored = score_matrix(
            scores_of, examples, tokens, loader.cache, self.options.pairs, advance, partial, share
        )
        if scored is None:
            return []
        matrix, image_of, firsts = scored
        ranking = rank(matrix, image_of)
        predictions: list[Prediction] = []
        for column, example in enumerate(examples):
            row = int(image_of[column])
            prediction = {
                "id": example.id,
                "group": example.group,
                "text": example.text,
                "image_rank": int(ranking.image_rank[column]),
                "text_rank": int(ranking.text_rank[row]),
                "top_images": [firsts[index].group for index in ranking.top_images[column].tolist()],
                "top_captions": [examples[index].id for index in ranking.top_captions[row].tolist()],
            }
            predictions.append({**prediction, "score": hit_at_1(prediction)})
        return sorted(predictions, key=lambda prediction: str(prediction["id"]))

    def predict(self, logits: Tensor, examples: Sequence[Example]) -> list[Prediction]:
        """Raises `TypeError`: ranks are known only when all pairs are scored."""
        raise TypeError("retrieval is evaluated on whole splits; see `evaluate`")

    def write_submission(self, predictions: Sequence[Prediction], path: Path) -> None:
        """JSON lines with each caption's best images and its image's best captions. There is no server."""
        kept = ("id", "top_images", "top_captions")
        lines = [json.dumps({key: each[key] for key in kept}) for each in predictions]
        write_atomically(path, "".join(f"{line}\n" for line in lines).encode())

    def _chosen(self, captions: Columns, split: SplitName) -> Columns:
        """The captions of as many images as the split may have."""
        limit = self.options.limit_of(split)
        if limit is None:
            return captions
        groups = captions.groups
        images = list(dict.fromkeys(groups))
        kept = set(limited(images, limit, self.options.limit_seed, str))
        return captions.take(np.array([place for place, image in enumerate(groups) if image in kept]))
