"""Data of the official counts, for measuring: `python tests/support/official_counts.py FOLDER [TASK …]`.

VQA2.0: 443,757 training questions about 82,783 images, 214,354 validation questions about 40,504 images, 447,793 test
questions about 81,434 images. NLVR2: 86,373, 6,982 and 6,967 statements, here two about each pair of images. SNLI-VE:
529,527, 17,858 and 17,901 hypotheses about 29,783, 1,000 and 1,000 images. Retrieval: Karpathy's COCO, 123,287 images
with 616,767 captions. Texts are drawn from a small vocabulary. Images are hard links to a few photographs of noise, of
sizes that occur in COCO.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

VQA2 = {"train2014": (443_757, 82_783), "val2014": (214_354, 40_504), "test2015": (447_793, 81_434)}
"""Questions and images of each split."""

COCO = {"train": 82_783, "restval": 30_504, "val": 5_000, "test": 5_000}
"""Images of each of Karpathy's splits."""

CAPTIONS = 616_767

NLVR2 = {"train": 86_373, "dev": 6_982, "test1": 6_967}
"""Statements of each split."""

SNLI_VE = {"train": (529_527, 29_783), "dev": (17_858, 1_000), "test": (17_901, 1_000)}
"""Hypotheses and images of each split."""

SIZES = ((640, 480), (480, 640), (640, 427), (500, 375), (427, 640), (640, 640), (500, 333), (612, 612))

LINKS = 30_000
"""Hard links to one file; some file systems allow no more than 32,000 or 65,000."""

WORDS = [
    "what", "is", "the", "man", "woman", "dog", "cat", "doing", "holding",
    "in", "on", "near", "red", "blue", "green", "table", "street", "water",
    "tree", "two", "three", "how", "many", "people", "are", "there", "color",
    "kind", "of", "does", "this", "look", "like", "a", "boy", "girl",
    "bus", "train", "field", "snow", "plate", "food",
]  # fmt: skip

KINDS = ("yes/no", "number", "other")


def write_photographs(folder: Path, count: int) -> list[Path]:
    """Enough different files that `count` images can be hard links to them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    paths = []
    for index in range(max(len(SIZES), -(-count // LINKS))):
        width, height = SIZES[index % len(SIZES)]
        coarse = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        paths.append(folder / f"{index}.jpg")
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def link_all(names: list[str], folder: Path, photographs: list[Path]) -> None:
    """Make every name in `folder` a hard link to one of the photographs."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        os.link(photographs[index % len(photographs)], folder / name)


def sentences(rng: np.random.Generator, count: int) -> list[str]:
    """Texts of 3 to 12 words."""
    lengths = rng.integers(3, 13, count)
    words = rng.integers(0, len(WORDS), int(lengths.sum()))
    ends = np.cumsum(lengths)
    return [
        " ".join(WORDS[word] for word in words[end - length : end])
        for length, end in zip(lengths.tolist(), ends.tolist(), strict=True)
    ]


def write_vqa(root: Path) -> None:
    """VQA2.0's questions, annotations and images."""
    rng = np.random.default_rng(1)
    # Answers as frequent as in VQA2.0: few are given very often, many a few times.
    answers = [f"answer {rank}" for rank in range(20_000)]
    chances = 1 / np.arange(1, len(answers) + 1) ** 1.1
    chances /= chances.sum()
    for split, (questions, images) in VQA2.items():
        numbers = 1 + np.arange(images) * 7
        of_question = np.concatenate([numbers, rng.choice(numbers, questions - images)])
        texts = sentences(rng, questions)
        entries = [
            {"image_id": image, "question": f"{text}?", "question_id": 10 * index + 3}
            for index, (image, text) in enumerate(zip(of_question.tolist(), texts, strict=True))
        ]
        name = root / f"v2_OpenEnded_mscoco_{split}_questions.json"
        name.write_text(json.dumps({"info": {}, "questions": entries}))
        names = [f"COCO_{split}_{number:012d}.jpg" for number in numbers.tolist()]
        link_all(names, root / split, write_photographs(root / "photographs" / split, images))
        if split == "test2015":
            continue
        drawn = rng.choice(len(answers), (questions, 2), p=chances)
        agreeing = rng.integers(1, 11, questions)
        annotations: list[dict[str, Any]] = []
        for entry, (first, second), count in zip(entries, drawn.tolist(), agreeing.tolist(), strict=True):
            given = [answers[first]] * count + [answers[second]] * (10 - count)
            annotations.append(
                {
                    "question_type": "what is",
                    "multiple_choice_answer": answers[first],
                    "answers": [
                        {"answer": text, "answer_confidence": "yes", "answer_id": k}
                        for k, text in enumerate(given, start=1)
                    ],
                    "image_id": entry["image_id"],
                    "answer_type": KINDS[first % 3],
                    "question_id": entry["question_id"],
                }
            )
        (root / f"v2_mscoco_{split}_annotations.json").write_text(json.dumps({"annotations": annotations}))


def write_retrieval(root: Path) -> None:
    """Karpathy's file for COCO, and its images."""
    rng = np.random.default_rng(2)
    images = sum(COCO.values())
    texts = iter(sentences(rng, CAPTIONS))
    more = CAPTIONS - 5 * images  # a few images have more than five captions
    entries: list[dict[str, Any]] = []
    sentence = 0
    for split, count in COCO.items():
        folder = "train2014" if split == "train" else "val2014"
        for _ in range(count):
            image = len(entries)
            captions = []
            for _ in range(5 + (image < more)):
                captions.append({"raw": next(texts), "imgid": image, "sentid": sentence})
                sentence += 1
            entries.append(
                {
                    "filepath": folder,
                    "filename": f"COCO_{folder}_{image:012d}.jpg",
                    "imgid": image,
                    "split": split,
                    "sentences": captions,
                }
            )
    (root / "dataset_coco.json").write_text(json.dumps({"images": entries, "dataset": "coco"}))
    for folder in ("train2014", "val2014"):
        names = [entry["filename"] for entry in entries if entry["filepath"] == folder]
        link_all(names, root / folder, write_photographs(root / "photographs" / folder, len(names)))


def write_nlvr2(root: Path) -> None:
    """NLVR2's statements and images; of training images 1,000 pairs in a folder."""
    rng = np.random.default_rng(3)
    for split, count in NLVR2.items():
        names: dict[str, list[str]] = defaultdict(list)
        lines = []
        for index, text in enumerate(sentences(rng, count)):
            image_set, pair = divmod(index // 2, 4)
            entry = {
                "identifier": f"{split}-{image_set}-{pair}-{index % 2}",
                "sentence": text,
                "label": "True" if rng.random() < 0.5 else "False",
            }
            folder = ""
            if split == "train":
                folder = entry["directory"] = str(index // 2000)
            lines.append(json.dumps(entry))
            if index % 2 == 0:
                names[folder] += [f"{split}-{image_set}-{pair}-img{side}.png" for side in (0, 1)]
        (root / f"{split}.json").write_text("\n".join(lines))
        photographs = write_photographs(root / "photographs" / split, count + 1)
        for folder, members in names.items():
            link_all(members, root / "images" / split / folder, photographs)


def write_snli_ve(root: Path) -> None:
    """SNLI-VE's hypotheses and Flickr30k's images."""
    rng = np.random.default_rng(4)
    for split, (count, images) in SNLI_VE.items():
        numbers = [f"{split}{number}" for number in range(images)]
        lines = [
            json.dumps(
                {
                    "pairID": f"{split}{index}",
                    "gold_label": ("entailment", "neutral", "contradiction")[index % 3],
                    "Flickr30K_ID": numbers[index % images],
                    "sentence1": "a photograph",
                    "sentence2": text,
                }
            )
            for index, text in enumerate(sentences(rng, count))
        ]
        (root / f"snli_ve_{split}.jsonl").write_text("\n".join(lines))
        photographs = write_photographs(root / "photographs" / split, images)
        link_all([f"{number}.jpg" for number in numbers], root / "flickr30k_images", photographs)


WRITERS = {"vqa": write_vqa, "nlvr2": write_nlvr2, "snli_ve": write_snli_ve, "retrieval": write_retrieval}
"""What writes a task's data."""


def main() -> None:
    """Write the data that are named, by default all."""
    root, *tasks = sys.argv[1:]
    for task in tasks or WRITERS:
        folder = Path(root) / task
        folder.mkdir(parents=True)
        WRITERS[task](folder)
        print(folder)


if __name__ == "__main__":
    main()
