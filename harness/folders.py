"""Folders of the user: the home folder in paths, and the cache."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from harness.errors import UserError
from harness.files import make_folder


def home_expanded(path: str | Path) -> Path:
    """`path` with `~` and `~user` replaced.

    Raises:
        UserError: there is no such home folder.
    """
    expanded = os.path.expanduser(path)  # noqa: PTH111 - pathlib's raises a RuntimeError
    if expanded.startswith("~"):
        raise UserError(f"{path}: there is no home folder for '{expanded.partition('/')[0]}'.")
    return Path(expanded)


def cache_folder() -> Path:
    """Folder for generated data: `$HARNESS_CACHE`, else the user's cache folder; it exists and can be written.

    Without a home folder that can be written, as in many containers, it is in the folder for temporary files.

    Raises:
        UserError: the chosen folder, or none of the others, can be created and written.
    """
    if chosen := os.environ.get("HARNESS_CACHE"):
        return make_folder(home_expanded(chosen))
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    temporary = Path(tempfile.gettempdir()) / f"petl-harness-{os.getuid()}"
    for folder in (Path(base) / "petl-harness", temporary):
        if not folder.is_absolute():
            continue
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            # Another user may have created a folder of this name among the temporary files.
            if os.access(folder, os.W_OK) and (folder != temporary or folder.stat().st_uid == os.getuid()):
                return folder
    raise UserError(
        f"{base}/petl-harness: cannot be written; set HARNESS_CACHE or XDG_CACHE_HOME to a folder that can."
    )
