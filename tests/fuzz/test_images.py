"""Damaged images are read or named on one line."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tasks.data.images import load_rgb
from tests.support.fuzzing import at_most_a_user_error, cases, damaged


def encoded(form: str, mode: str) -> bytes:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    image = Image.linear_gradient("L").resize((24, 16)).convert(mode)
    image.save(buffer, form, exif=exif) if form in ("JPEG", "PNG", "WEBP") else image.save(buffer, form)
    return buffer.getvalue()


IMAGES = {
    "jpeg": encoded("JPEG", "RGB"),
    "grey": encoded("JPEG", "L"),
    "png": encoded("PNG", "RGBA"),
    "palette": encoded("GIF", "P"),
    "bmp": encoded("BMP", "RGB"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", IMAGES)
@cases(60)
@given(data=st.data())
def test_damaged_images(tmp_path: Path, form: str, data: st.DataObject) -> None:
    path = tmp_path / "image"
    path.write_bytes(data.draw(damaged(IMAGES[form])))
    with at_most_a_user_error():
        assert load_rgb(path).mode == "RGB"
