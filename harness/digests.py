"""Digests of weights, source code and plain values: what ties a cached result to its inputs."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor, uint8

PACKAGES = ("methods", "tasks", "harness")


FIT = ("harness.training.loop", "harness.training.search", "tasks.data.loader")
"""Modules that every result depends on beside its method, task and backbone."""


@cache
def module_source(name: str) -> tuple[str, frozenset[str]]:
    """A module's code without comments and docstrings, and the names it imports of our packages."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return "", frozenset()
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        body = getattr(node, "body", None)
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, documented) and isinstance(body, list):
            node.body = [part for part in node.body if not _is_text(part)] or [ast.Pass()]
    return ast.unparse(tree), frozenset(name for name in imported if name.split(".")[0] in PACKAGES)


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def code_digest(*modules: str) -> str:
    """SHA-256 (16 hex digits) over `modules` and all they import of this project, transitively.

    Comments, docstrings and layout do not count.
    """
    hasher = hashlib.sha256()
    for name in sorted(_closure(modules)):
        hasher.update(f"{name}\n{module_source(name)[0]}\n".encode())
    return hasher.hexdigest()[:16]


def _closure(modules: tuple[str, ...]) -> set[str]:
    waiting, found = list(modules), set[str]()
    while waiting:
        name = waiting.pop()
        if name in found or not _exists(name):
            continue
        found.add(name)
        waiting += module_source(name)[1]
    return found


@cache
def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):
        return False


def digest_state(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over names, shapes, types and bytes of `state`, and over `config` as JSON."""
    hasher = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        hasher.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        hasher.update(tensor.reshape(-1).view(uint8).numpy().tobytes())
    return hasher.hexdigest()


def digest_json(value: Any) -> str:
    """SHA-256 (16 hex digits) of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
