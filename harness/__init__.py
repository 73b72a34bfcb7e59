"""A benchmark harness for parameter- and computation-efficient transfer learning of vision-language models.

    import harness

    results = harness.run(methods=["das", "lora"], tasks=["vqa"], seeds=[0])

The functions are imported when they are first used, so that importing the package is fast.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_API = (
    "Results",
    "adapt",
    "build_method",
    "evaluate",
    "load_results",
    "open_backbone",
    "prepare",
    "run",
    "tune",
)
"""Names of `harness.api` that are also names of the package."""

__all__ = [*_API, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "UserError":
        return import_module("harness.errors").UserError
    if name in _API:
        return getattr(import_module("harness.api"), name)
    raise AttributeError(f"module 'harness' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
