"""Karpathy's captions by column, parsed once per version of the file and then read from the cache folder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from tasks.data.columns import Arrays, Columns, Numbers, Strings, parsed
from tasks.retrieval.files import SPLITS, Captions, dataset_of, image_folder, image_name, read_captions


@dataclass(frozen=True)
class CaptionColumns:
    """One of Karpathy's files, its N captions in the file's order, those of an image side by side.

    files: SHA-256 (hex) by file name.
    arrays: `sentid`, `imgid` `(N,)` int64; `split` `(N,)`, indices into `SPLITS`; `text` (see `Strings`); `path`, of
        each image in `root`; and `image` `(N, 1)`, indices into `path`.
    """

    path: Path
    root: Path
    files: dict[str, str]
    arrays: Arrays

    @property
    def dataset(self) -> str:
        """`flickr8k` for `dataset_flickr8k.json`."""
        return dataset_of(self.path)

    @cached_property
    def _paths(self) -> list[str]:
        return list(Strings.from_arrays(self.arrays, "path"))

    def of(self, *splits: str) -> Columns:
        """The captions of some splits; an example's group is its image."""
        arrays = self.arrays
        return Columns(
            Numbers(arrays["sentid"]),
            Strings.from_arrays(arrays, "text"),
            Numbers(arrays["imgid"]),
            self._paths,
            arrays["image"],
            self.root,
            lambda row: None,
            np.flatnonzero(np.isin(arrays["split"], [SPLITS.index(split) for split in splits])),
        )


def load_captions(path: Path, root: Path) -> CaptionColumns:
    """The captions of a file, from the cache folder if it was read before. root: the folder of the task's data.

    Raises:
        UserError: names the file and place at fault.
    """
    folder = image_folder(root, dataset_of(path))
    files, arrays = parsed(
        [path], [str(folder)], [read_captions, to_arrays], lambda: to_arrays(read_captions(path), folder)
    )
    return CaptionColumns(path, root, files, arrays)


def to_arrays(captions: Captions, folder: Path) -> Arrays:
    """The columns of a parsed file. folder: of images whose entries name none."""
    each = [(index, image) for index, image in enumerate(captions.photographs) for _ in image.captions]
    sentences = [caption for image in captions.photographs for caption in image.captions]
    return {
        "sentid": np.array([sentence.id for sentence in sentences], dtype=np.int64),
        "imgid": np.array([image.id for _, image in each], dtype=np.int64),
        "split": np.array([SPLITS.index(image.split) for _, image in each], dtype=np.int8),
        "image": np.array([[index] for index, _ in each], dtype=np.int32),
        **Strings.of(sentence.text for sentence in sentences).arrays("text"),
        **Strings.of(image_name(image, folder) for image in captions.photographs).arrays("path"),
    }
