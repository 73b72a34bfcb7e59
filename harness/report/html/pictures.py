"""Images of a page, each of which it holds once."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

_PIXELS = 160
"""Longest side."""


@dataclass(frozen=True)
class Picture:
    """A small image. uri: its content as a data URI. key: its name on the page."""

    key: str
    name: str
    width: int
    height: int
    uri: str


class Pictures:
    """Small copies of image files, made when they are first asked for."""

    def __init__(self) -> None:
        self._known: dict[Path, Picture | None] = {}

    @property
    def all(self) -> list[Picture]:
        """The pictures that could be read."""
        return [picture for picture in self._known.values() if picture is not None]

    def get(self, path: Path) -> Picture | None:
        """The picture of a file; None if it cannot be read."""
        if path not in self._known:
            self._known[path] = self._read(path)
        return self._known[path]

    def _read(self, path: Path) -> Picture | None:
        try:
            with Image.open(path) as picture:
                small = picture.convert("RGB")
                small.thumbnail((_PIXELS, _PIXELS))
                content = io.BytesIO()
                small.save(content, "JPEG", quality=80)
        except (OSError, UnidentifiedImageError):
            return None
        uri = f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
        return Picture(f"p{len(self._known)}", path.name, *small.size, uri)
