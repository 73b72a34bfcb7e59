"""Karpathy's split files (`dataset_flickr30k.json`, `dataset_coco.json`, `dataset_flickr8k.json`)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError
from tasks.data.files import field, follow_link, read_json, require_file

FOLDERS = ("", "karpathy/")
"""Folders below the data folder in which the file may be."""


SPLITS = ("train", "val", "test", "restval")


@dataclass(frozen=True, slots=True)
class Caption:
    """One sentence about an image; `id` is unique in the file."""

    id: int
    text: str


@dataclass(frozen=True, slots=True)
class Photograph:
    """One image with its captions. filepath: its folder (COCO only)."""

    id: int
    filename: str
    filepath: str | None
    split: str
    captions: tuple[Caption, ...]


@dataclass(frozen=True)
class Captions:
    """One of Karpathy's files, images in its order. digest: SHA-256 (hex) of the file."""

    path: Path
    photographs: tuple[Photograph, ...]
    digest: str

    def of(self, *splits: str) -> list[Photograph]:
        """The images of some splits."""
        return [photograph for photograph in self.photographs if photograph.split in splits]


def find_dataset(root: Path, name: str) -> Path:
    """`dataset_{name}.json`; with "auto" the only such file. Raises `UserError` if it is missing or ambiguous."""
    if name != "auto":
        return require_file(root, *(f"{folder}dataset_{name}.json" for folder in FOLDERS))
    found = [path for folder in FOLDERS for path in sorted((root / folder).glob("dataset_*.json*"))]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UserError(f"{root}: contains {names}; choose one with retrieval[dataset=NAME]")
    if not found:
        missing = "" if root.is_dir() else " (no such folder)"
        raise UserError(f"{root}{missing}: contains no dataset_*.json, nor does its folder karpathy")
    return found[0]


def read_captions(path: Path) -> Captions:
    """Read one file. Raises `UserError` naming the file and place at fault."""
    content, digest = read_json(path)
    photographs: dict[int, Photograph] = {}
    caption_ids: set[int] = set()
    for index, entry in enumerate(field(content, "images", list, str(path))):
        place = f"{path}: images[{index}]"
        photograph = _read_photograph(entry, place)
        if photograph.id in photographs:
            raise UserError(f"{place}: imgid {photograph.id} appears twice")
        for position, caption in enumerate(photograph.captions):
            if caption.id in caption_ids:
                raise UserError(f"{place}.sentences[{position}]: sentid {caption.id} appears twice")
            caption_ids.add(caption.id)
        photographs[photograph.id] = photograph
    if not photographs:
        raise UserError(f"{path}: 'images' is empty")
    return Captions(path, tuple(photographs.values()), digest)


def dataset_of(path: Path) -> str:
    """`flickr8k` for `dataset_flickr8k.json`."""
    return path.name.partition(".")[0].removeprefix("dataset_")


def image_folder(root: Path, dataset: str) -> Path:
    """The folder, seen from `root`, of images whose entries name none.

    `{dataset}-images`, `{dataset}_images` or `images`, or the target of a link of such a name.
    """
    folders = [follow_link(root / name) for name in (f"{dataset}-images", f"{dataset}_images", "images")]
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    return folder.relative_to(root) if folder.is_relative_to(root) else folder


def image_name(photograph: Photograph, folder: Path) -> str:
    """Path of an image: in the folder below the data folder that COCO's entries name, else in `folder`."""
    place = folder if photograph.filepath is None else photograph.filepath
    return os.path.join(place, photograph.filename)  # noqa: PTH118 - fast


def _read_photograph(entry: Any, place: str) -> Photograph:
    split = field(entry, "split", str, place)
    if split not in SPLITS:
        raise UserError(f"{place}: a split is one of {', '.join(SPLITS)}; not '{split}'")
    sentences = field(entry, "sentences", list, place)
    if not sentences:
        raise UserError(f"{place}: 'sentences' is empty")
    captions = []
    for position, sentence in enumerate(sentences):
        inside = f"{place}.sentences[{position}]"
        captions.append(Caption(field(sentence, "sentid", int, inside), field(sentence, "raw", str, inside)))
    return Photograph(
        field(entry, "imgid", int, place),
        field(entry, "filename", str, place),
        field(entry, "filepath", str, place) if "filepath" in entry else None,
        split,
        tuple(captions),
    )
