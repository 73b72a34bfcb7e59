"""The environment of a run: versions, hardware, commit, command line; never the host's or the user's name."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "transformers",
    "adapters",
    "lightning-fabric",
    "numpy",
    "pandas",
    "pillow",
    "safetensors",
    "tokenizers",
)


CODE = ("harness", "methods", "tasks", "pyproject.toml")
"""Parts of a checkout that can change results; only changes of these make it dirty."""


_SOURCE = Path(__file__).resolve().parents[2]


def describe_environment() -> dict[str, Any]:
    """JSON-able, with the keys of `harness.records.record.Environment`."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--", *(name for name in CODE if (_SOURCE / name).exists()))
    return {
        "versions": {
            "python": platform.python_version(),
            **{package: package_version(package) for package in PACKAGES},
            "cuda": torch.version.cuda,
        },
        "hardware": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "usable_cores": len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count(),
            "memory_gib": _memory_gib(),
            "gpus": gpus,
        },
        "threads": torch.get_num_threads(),
        "commit": commit,
        "dirty": None if commit is None or changes is None else bool(changes),
        "command": command_line(sys.argv),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def package_version(package: str) -> str | None:
    """Installed version of a package, None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_model() -> str:
    """The CPU's name as reported by the system."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def command_line(arguments: list[str]) -> str:
    """The command, quoted for a shell; the home directory is `~`, the user's name in a path `USER`."""
    program, *rest = arguments or ["harness"]
    name = Path(program).name
    started = ["python", "-m", "harness"] if name == "__main__.py" else [name]
    return shlex.join([*started, *map(_without_user, rest)])


def _without_user(argument: str) -> str:
    home = os.path.expanduser("~")  # noqa: PTH111 - pathlib's fails where there is no home folder
    if len(home) > 1 and home != "~":
        argument = re.sub(rf"{re.escape(home)}(?=/|$)", "~", argument)
    user = os.environ.get("USER") or os.environ.get("LOGNAME")
    return re.sub(rf"(?<=/){re.escape(user)}(?=/|$)", "USER", argument) if user else argument


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _git(*arguments: str) -> str | None:
    """Output of git in the source checkout; None if it is no checkout, or git is missing or fails."""
    if not (_SOURCE / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(_SOURCE), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
