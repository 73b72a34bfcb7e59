"""Images of every encoding become upright 8-bit RGB; errors name broken ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.errors import UserError
from tasks.data.images import load_rgb, upright_size
from tests.support.paths import SHARED, needs_shared_data


def corner(path: Path) -> tuple[int, ...]:
    image = load_rgb(path)
    assert image.mode == "RGB"
    return tuple(np.asarray(image)[0, 0].tolist())


def test_greyscale_is_repeated(tmp_path: Path) -> None:
    Image.new("L", (4, 3), 77).save(tmp_path / "x.png")
    assert corner(tmp_path / "x.png") == (77, 77, 77)


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    levels = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "x.png")
    assert np.asarray(load_rgb(tmp_path / "x.png"))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_palette_is_resolved(tmp_path: Path) -> None:
    image = Image.new("P", (4, 3), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "x.png")
    assert corner(tmp_path / "x.png") == (10, 20, 30)


@pytest.mark.parametrize(
    ("mode", "colour", "seen"),
    [
        ("RGBA", (0, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (200, 100, 0, 255), (200, 100, 0)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("LA", (0, 0), (255, 255, 255)),
    ],
)
def test_transparency_is_composited_on_white(
    tmp_path: Path, mode: str, colour: tuple[int, ...], seen: tuple[int, ...]
) -> None:
    Image.new(mode, (4, 3), colour).save(tmp_path / "x.png")
    assert corner(tmp_path / "x.png") == seen


def test_transparent_palette_entry_is_composited_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 3), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "x.png", transparency=1)
    assert corner(tmp_path / "x.png") == (255, 255, 255)


def test_cmyk_is_converted(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=100)
    red, green, blue = corner(tmp_path / "x.jpg")
    assert red > 230
    assert max(green, blue) < 25


def test_exif_orientation_turns_the_image_upright(tmp_path: Path) -> None:
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, :8] = 255  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # upright after a turn by 90° clockwise: left becomes top
    path = tmp_path / "x.jpg"
    Image.fromarray(pixels).save(path, exif=exif, quality=100)
    image = load_rgb(path)
    assert image.size == upright_size(path) == (8, 16)
    assert np.asarray(image)[0, :, 0].min() > 250
    assert np.asarray(image)[-1, :, 0].max() < 5


def test_size_comes_from_the_header(tmp_path: Path) -> None:
    Image.new("RGB", (7, 5)).save(tmp_path / "x.png")
    assert upright_size(tmp_path / "x.png") == (7, 5)


def truncated(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:1000])


def text(path: Path) -> None:
    path.write_text("404 not found")


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("name", ["x.jpg", "x.png"])
@pytest.mark.parametrize("spoil", [truncated, text, nothing, folder])
def test_unreadable_image_is_named_on_one_line(
    tmp_path: Path, name: str, spoil: Callable[[Path], None]
) -> None:
    path = tmp_path / name
    spoil(path)
    with pytest.raises(UserError) as caught:
        load_rgb(path)
    assert str(caught.value).startswith(f"{path}: not a readable image: ")
    assert "\n" not in str(caught.value)


def test_missing_image_is_named(tmp_path: Path) -> None:
    for read in (load_rgb, upright_size):
        with pytest.raises(UserError, match=r"gone\.jpg: no such image"):
            read(tmp_path / "gone.jpg")


@needs_shared_data
def test_real_photographs_load() -> None:
    paths = sorted((SHARED / "vqa2-daquar" / "val2014").glob("*.jpg"))[:3]
    assert [min(load_rgb(path).size) for path in paths] == [224, 224, 224]
    assert [load_rgb(path).size for path in paths] == [upright_size(path) for path in paths]


def test_a_pipe_or_a_folder_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    for name in ("pipe.jpg", "folder.jpg", "loop.jpg", "x" * 300):
        for read in (load_rgb, upright_size):
            with pytest.raises(UserError, match="not a readable image"):
                read(tmp_path / name)


def test_exif_data_that_cannot_be_read_count_as_upright(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(image: Image.Image) -> None:
        raise SyntaxError("not a TIFF file")

    Image.new("RGB", (6, 4)).save(tmp_path / "odd.jpg")
    monkeypatch.setattr(Image.Image, "getexif", fail)
    assert load_rgb(tmp_path / "odd.jpg").size == upright_size(tmp_path / "odd.jpg") == (6, 4)
