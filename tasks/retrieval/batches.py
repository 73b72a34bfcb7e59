"""Batches of image-text pairs: with negatives for training, every image with every caption for evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from harness.backbones.inputs import Inputs
from harness.errors import UserError
from tasks.base import Batch, Example, Share
from tasks.data.batches import pad_text, stack_images
from tasks.data.columns import groups_of
from tasks.data.image_cache import ImageCache
from tasks.data.images import decode
from tasks.data.tokens import Tokens
from tasks.resumable_scores import PartialScores

CAPTIONS_AT_ONCE = 64
"""Captions in an evaluation batch, if the batch is large enough for several images with as many."""


class NegativeSampler:
    """Draws captions that do not belong to an example's image.

    A draw depends on (seed, epoch, example id) alone. With `exclude_own` the captions are distinct and of other
    images. Without it they are drawn independently from all captions, the right one included, as published.
    """

    def __init__(self, examples: Sequence[Example], count: int, exclude_own: bool, seed: int) -> None:
        self._count = count
        self._exclude_own = exclude_own
        self._seed = seed
        # Captions of an image stand side by side, so that excluding them is excluding a range.
        groups = groups_of(examples)
        self.order = sorted(range(len(groups)), key=groups.__getitem__)
        self._range: dict[str, tuple[int, int]] = {}
        for place, index in enumerate(self.order):
            first = self._range.get(groups[index], (place, place))[0]
            self._range[groups[index]] = (first, place + 1)
        most = max((stop - start for start, stop in self._range.values()), default=0)
        if exclude_own and len(examples) - most < count:
            raise UserError(
                f"{count} captions of other images are needed as negatives, but there are only {len(examples)} "
                f"captions, up to {most} of them of one image; lower the number of negatives"
            )

    def draw(self, example: Example, epoch: int) -> list[int]:
        """Indices into the examples."""
        key = hashlib.sha256(f"{self._seed}:{epoch}:{example.id}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(key[:8]))
        if not self._exclude_own:
            places = generator.integers(len(self.order), size=self._count)
        else:
            start, stop = self._range[example.group]
            others = len(self.order) - (stop - start)
            places = generator.choice(others, size=self._count, replace=False)
            places = places + np.where(places >= start, stop - start, 0)
        return [self.order[place] for place in places.tolist()]


def score_matrix(
    score: Callable[[Batch], Tensor],
    examples: Sequence[Example],
    tokens: Tokens,
    images: ImageCache,
    pairs_per_batch: int,
    on_pairs: Callable[[int], None] = lambda count: None,
    partial: PartialScores | None = None,
    share: Share = Share(),
) -> tuple[np.ndarray, np.ndarray, list[Example]] | None:
    """Scores of every image of `examples` with every caption.

    tokens: of the examples' texts.
    score: a batch of B images and B · T texts → `(B, T)` float32 on the CPU.
    on_pairs: called with the number of pairs scored since the last call.
    partial: finished rows of an interrupted evaluation; new ones are saved there.
    share: the images that this process scores.
    Returns None on ranks other than 0, else `(M, N)` scores, `(N,)` the row of each caption's image, and the first
    example of each row.
    Captions are sorted by length and images by shape, so that little is padded. Each image is decoded once. A batch
    has few images and many captions, because images cost most to prepare.
    """
    firsts = list({example.group: example for example in reversed(examples)}.values())[::-1]
    rows = {example.group: row for row, example in enumerate(firsts)}
    image_of = np.array([rows[example.group] for example in examples])
    by_length = np.argsort(tokens.lengths, kind="stable").tolist()
    paths = [str(example.images[0]) for example in firsts]
    by_shape = sorted(range(len(firsts)), key=lambda row: images.shape(paths[row]))
    together = min(len(firsts), max(1, pairs_per_batch // CAPTIONS_AT_ONCE))
    texts = min(len(examples), pairs_per_batch // together)
    chunks = [by_length[start : start + texts] for start in range(0, len(examples), texts)]
    padded = [pad_text([tokens[index] for index in chunk], images.processor.pad_id) for chunk in chunks]
    scores = np.empty((len(firsts), len(examples)), dtype=np.float32)
    done = np.zeros(len(firsts), dtype=bool)
    scored = _digest_of(examples, pairs_per_batch)
    if partial is not None:
        scores, done = partial.load(scored, scores.shape)
        on_pairs(int(done.sum()) * len(examples))
    own = range(share.rank * together, len(firsts), share.world_size * together)
    for start in own:
        chosen = by_shape[start : start + together]
        if done[chosen].all():
            continue
        pictures = [_image(paths[row], images) for row in chosen]
        keys = tuple(images.key(paths[row], picture) for row, picture in zip(chosen, pictures, strict=True))
        pixels, sizes = stack_images(pictures, images.processor)
        for chunk, (ids, mask) in zip(chunks, padded, strict=True):
            repeated = None if mask is None else mask.repeat(len(chosen), 1)
            inputs = Inputs(ids.repeat(len(chosen), 1), repeated, pixels, sizes, image_keys=keys)
            found = score(Batch((inputs,), None, tuple(firsts[row].group for row in chosen)))
            scores[np.ix_(chosen, chunk)] = found.numpy()
            on_pairs(len(chosen) * len(chunk))
        done[chosen] = True
        if partial is not None:
            partial.save(scored, scores, done)
    scored_rows = np.array(
        [row for start in own for row in by_shape[start : start + together]], dtype=np.int64
    )
    for part_rows, part in share.gather((scored_rows, scores[scored_rows])):
        scores[part_rows] = part
    if partial is not None:
        partial.remove()
    return (scores, image_of, firsts) if share.rank == 0 else None


def _digest_of(examples: Sequence[Example], pairs_per_batch: int) -> str:
    """Digest of the pairs and of the batch size, which changes the last digits of scores."""
    hasher = hashlib.sha256(f"{pairs_per_batch}".encode())
    for example in examples:
        hasher.update(f"\n{example.id} {example.group} {example.text}".encode())
    return hasher.hexdigest()


def _image(path: str, images: ImageCache) -> Tensor:
    found = images.get(path)
    if found is None:
        found = decode(path, images.processor)
        images.add(path, found)
    if isinstance(found, UserError):
        raise found
    return found
