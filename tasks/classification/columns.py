"""Parts of a classification task's data by column, parsed once per version of the files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from tasks.classification.task import Label, Part
from tasks.data.columns import Arrays, Columns, Strings, number_distinct, parsed


def load_part(folder: Path, files: Sequence[Path], read: Callable[[], Part]) -> Part:
    """What `read` makes of official files, from the cache folder if the same files were read before.

    folder: of the images; those of `read` are relative to it.

    Raises:
        UserError: a file is missing or broken; names the file and place at fault.
    """
    digests, arrays = parsed(files, [], [read, to_arrays], lambda: to_arrays(read()))
    return from_arrays(arrays, folder, digests)


def to_arrays(part: Part) -> Arrays:
    """The columns of a part.

    `id`, `text`, `group`, `path`, `label`: texts (see `Strings`). `image`: `(N, images per example)`, indices into
    `path`. `label_of`: `(N,)`, indices into `label`. `facts`: what a part is beside its examples.
    """
    examples = part.examples
    paths, image = number_distinct(path.as_posix() for example in examples for path in example.images)
    labels, label = number_distinct(json.dumps([each.target.index, each.target.subsets]) for each in examples)
    facts = json.dumps([part.official, part.part, part.notes])
    return {
        **Strings.of(each.id for each in examples).arrays("id"),
        **Strings.of(each.text for each in examples).arrays("text"),
        **Strings.of(each.group for each in examples).arrays("group"),
        **Strings.of(paths).arrays("path"),
        **Strings.of(labels).arrays("label"),
        **Strings.of([facts]).arrays("facts"),
        "image": image.reshape(-1, len(examples[0].images) if examples else 1),
        "label_of": label,
    }


def from_arrays(arrays: Arrays, folder: Path, files: dict[str, str]) -> Part:
    """The part that `to_arrays` stored, with its images in `folder`; files: SHA-256 (hex) by file name."""
    ids, texts, groups, paths, labels, (facts,) = (
        Strings.from_arrays(arrays, name) for name in ("id", "text", "group", "path", "label", "facts")
    )
    targets = [Label(index, tuple(subsets)) for index, subsets in map(json.loads, labels)]
    label_of = arrays["label_of"]
    official, part, notes = json.loads(facts)
    examples = Columns(
        ids, texts, groups, list(paths), arrays["image"], folder, lambda row: targets[label_of[row]]
    )
    return Part(official, part, examples, files, notes)
