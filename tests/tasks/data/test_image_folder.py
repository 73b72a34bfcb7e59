"""Resized images on disk: the same pixels, whoever wrote them; damage and full disks cost time only."""

from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

from harness.errors import UserError
from tasks.base import Example
from tasks.data import image_folder
from tasks.data import images as images_module
from tasks.data.image_cache import ImageCache
from tasks.data.image_folder import ImageFolder
from tasks.data.loader import Loader
from tests.support.word_processor import TASK, WordProcessor
from tests.tasks.data.test_loader import make_examples, same

DIGEST = "ab" + 62 * "0"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


def picture(height: int = 3, width: int = 5) -> torch.Tensor:
    return torch.arange(3 * height * width, dtype=torch.uint8).view(3, height, width)


def test_image_is_read_back_bit_by_bit(tmp_path: Path) -> None:
    folder = ImageFolder(tmp_path / "made" / "here", WordProcessor())
    assert folder.get(DIGEST) is None
    assert DIGEST not in folder
    folder.put(DIGEST, picture())
    assert DIGEST in folder
    found = ImageFolder(tmp_path / "made" / "here", WordProcessor()).get(DIGEST)
    assert found is not None
    assert found.dtype == torch.uint8
    assert torch.equal(found, picture())


def test_image_is_not_found_with_another_processor(tmp_path: Path) -> None:
    ImageFolder(tmp_path, WordProcessor(side=4)).put(DIGEST, picture())
    assert ImageFolder(tmp_path, WordProcessor(side=5)).get(DIGEST) is None


@pytest.mark.parametrize("damage", ["empty", "short", "bit", "record", "missing"])
def test_a_damaged_image_counts_as_missing_and_is_written_again(tmp_path: Path, damage: str) -> None:
    ImageFolder(tmp_path, WordProcessor()).put(DIGEST, picture())
    (path,) = tmp_path.glob("*/*.index" if damage == "record" else "*/*.pixels")
    content = bytearray(path.read_bytes())
    if damage == "empty":
        content.clear()
    elif damage == "short":
        del content[-1]
    else:
        content[-1] ^= 1
    path.write_bytes(content)
    if damage == "missing":
        path.unlink()
    folder = ImageFolder(tmp_path, WordProcessor())
    assert folder.get(DIGEST) is None
    folder.put(DIGEST, picture())
    for _ in range(2):
        assert torch.equal(folder.get(DIGEST), picture())  # type: ignore[arg-type]
        folder = ImageFolder(tmp_path, WordProcessor())
        if folder.get(DIGEST) is None:  # the damaged one was read first
            folder.get(DIGEST)


def test_several_processes_write_at_once_and_read_from_each_other(tmp_path: Path) -> None:
    folders = [ImageFolder(tmp_path, WordProcessor()) for _ in range(4)]
    names = [f"{number:064x}" for number in range(20)]

    def fill(number: int) -> None:
        for name in names[5 * number : 5 * number + 5]:
            folders[number].put(name, picture(2 + number, 7))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fill, range(4)))
    reader = ImageFolder(tmp_path, WordProcessor())
    for place, name in enumerate(names):
        assert torch.equal(reader.get(name), picture(2 + place // 5, 7))  # type: ignore[arg-type]


def test_a_full_file_is_followed_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_folder, "_LARGEST_FILE", 100)
    folder = ImageFolder(tmp_path, WordProcessor())
    names = [f"{number:064x}" for number in range(7)]
    for number, name in enumerate(names):
        folder.put(name, picture() + number)
        assert torch.equal(folder.get(name), picture() + number)  # type: ignore[arg-type]
    assert len(list(tmp_path.glob("*/*.pixels"))) == 3  # 45 bytes each
    assert torch.equal(folder.get(names[0]), picture())  # type: ignore[arg-type]


def test_an_image_is_ready_once_it_is_verified(tmp_path: Path) -> None:
    ImageFolder(tmp_path, WordProcessor()).put(DIGEST, picture())
    folder = ImageFolder(tmp_path, WordProcessor())
    assert folder.ready(DIGEST) is None
    folder.get(DIGEST)
    assert torch.equal(folder.ready(DIGEST), picture())  # type: ignore[arg-type]
    assert folder.ready(None) is None


def test_full_disk_is_reported_once_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(file: object, content: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(image_folder, "_write", full)
    examples = make_examples(tmp_path, 6)
    plain = list(Loader(examples, TASK, WordProcessor(), 2))
    cache = ImageCache(WordProcessor(), folder=tmp_path / "images")
    found = list(Loader(examples, TASK, cache.processor, 2, cache=cache))
    assert all(same(a, b) for a, b in zip(plain, found, strict=True))
    (line,) = capfd.readouterr().err.splitlines()
    assert line == (
        f"{tmp_path / 'images'}: cannot be written (No space left on device); "
        "images that it does not hold are decoded again."
    )
    assert len(cache) == 6  # in memory instead


def test_run_continues_without_a_folder_that_cannot_be_created(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    cache = ImageCache(WordProcessor(), folder=tmp_path / "file" / "images")
    assert len(list(Loader(make_examples(tmp_path, 2), TASK, cache.processor, 2, cache=cache))) == 1
    assert capfd.readouterr().err.count("cannot be written") == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_second_run_decodes_nothing(tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = make_examples(tmp_path, 14, [(4, 4), (6, 4), (5, 5)])
    batches = []
    for _ in range(2):
        cache = ImageCache(WordProcessor(), folder=tmp_path / "images")
        loader = Loader(examples, TASK, cache.processor, 4, shuffle=True, workers=workers, cache=cache)
        batches.append(list(loader))
        assert len(cache) == 0  # they are mapped from the disk
        monkeypatch.setattr(images_module, "load_rgb", None)
    assert all(same(a, b) for a, b in zip(*batches, strict=True))


def test_changed_file_is_decoded_again(tmp_path: Path) -> None:
    (example,) = make_examples(tmp_path, 1)

    def pixels() -> float:
        cache = ImageCache(WordProcessor(), folder=tmp_path / "images")
        (batch,) = Loader([example], TASK, cache.processor, 1, cache=cache)
        return float(batch.inputs[0].pixels.mean())

    first = pixels()
    Image.new("RGB", (4, 4), (9, 9, 9)).save(example.images[0])
    assert pixels() != first


def test_unreadable_images_are_not_kept(tmp_path: Path) -> None:
    examples = make_examples(tmp_path, 3)
    examples[1].images[0].write_text("no image")
    missing = Example("m", "x", (tmp_path / "missing.png",), 0, "m")
    cache = ImageCache(WordProcessor(side=4), folder=tmp_path / "images")
    loader = Loader([*examples, missing], TASK, cache.processor, 2, skip_bad_images=True, cache=cache)
    assert sorted(identifier for batch in loader for identifier in batch.ids) == ["0", "2"]
    (index,) = (tmp_path / "images").glob("*/*.index")
    assert index.stat().st_size == 2 * 56
    with pytest.raises(UserError, match="no such image"):
        list(Loader([missing], TASK, cache.processor, 2, cache=ImageCache(cache.processor)))
