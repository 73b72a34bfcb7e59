"""Digests of code: the modules that define it, and all modules that these import."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

from harness.digests.source import MAIN, REMEDY, Source, read_module, source_in_main
from harness.errors import UserError

PACKAGES = ("harness", "methods", "tasks")
"""This project's packages; their imports are always followed."""


def reachable(roots: Iterable[object], left_out: Collection[str] = ()) -> dict[str, Source]:
    """The modules that define `roots`, and all modules that these import, by name.

    Imports are followed everywhere, in functions too, whether absolute or relative; the `__init__` of every package
    on the way counts. They are followed through this project's packages and, from a root of a third party, through
    its own distribution and through modules in the same folder. Installed dependencies are not followed.

    roots: classes, functions, or names of modules.
    left_out: names of modules that are ignored; `a.b.*` is `a.b` and everything below it.

    Raises:
        UserError: a module cannot be found or has no source.
    """
    found: dict[str, Source] = {}
    places: list[str] = []
    waiting: list[str] = []
    for root in roots:
        name = root if isinstance(root, str) else _module_of(root)
        places.append(name)
        if name in MAIN:
            source = source_in_main(root)
            found[f"__main__.{root.__qualname__}"] = source  # type: ignore[attr-defined]
            waiting += source.imports
        elif locate(name) is None:
            defined = (
                ""
                if isinstance(root, str)
                else f", in which {getattr(root, '__qualname__', root)} is defined,"
            )
            raise UserError(f"module '{name}'{defined} cannot be found, {REMEDY}.")
        else:
            waiting.append(name)
    scope = _scope(places)
    while waiting:
        name = waiting.pop()
        if name in found or name not in scope or _is_left_out(name, left_out):
            continue
        spec = locate(name)
        if spec is not None:
            found[name] = source = _source_of(spec)
            waiting += source.imports
            if "." in name:
                waiting.append(name.rpartition(".")[0])
        elif name in sys.modules:
            raise UserError(f"module '{name}' was not read from a file, {REMEDY}.")
        # Else it is an attribute of a module that was added itself, or it cannot be imported.
    return found


def code_digest(sources: Mapping[str, Source]) -> str:
    """SHA-256 (16 hex digits) over names and code of modules."""
    hasher = hashlib.sha256()
    for name in sorted(sources):
        hasher.update(f"{name}\n{sources[name].code}\n".encode())
    return hasher.hexdigest()[:16]


@dataclass(frozen=True)
class _Scope:
    """Modules to follow: those of these top-level packages, and those in these folders."""

    packages: frozenset[str]
    folders: frozenset[Path]

    def __contains__(self, name: str) -> bool:
        top = name.partition(".")[0]
        return top in self.packages or (bool(self.folders) and _folder(top) in self.folders)


def _scope(roots: Iterable[str]) -> _Scope:
    packages, folders = set(PACKAGES), set[Path]()
    for top in {root.partition(".")[0] for root in roots} - packages:
        packages.add(top)
        folder = _folder(top)
        if folder is None:
            continue
        if folder.name in ("site-packages", "dist-packages"):
            packages |= _installed_with(top)
        else:
            folders.add(folder)
    return _Scope(frozenset(packages), frozenset(folders))


@cache
def _installed_with(top: str) -> frozenset[str]:
    """Top-level packages of the distributions that contain `top`."""
    installed = packages_distributions()
    own = set(installed.get(top, ()))
    return frozenset(name for name, distributions in installed.items() if own & set(distributions))


def _folder(top: str) -> Path | None:
    """The folder of a top-level package or module; None if it has none, as built-in modules."""
    if top in MAIN:
        script = getattr(sys.modules[top], "__file__", None)
        return Path.cwd() if script is None else Path(script).resolve().parent
    spec = locate(top)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve().parent
    return Path(spec.origin).resolve().parent if spec.has_location and spec.origin else None


def locate(name: str) -> ModuleSpec | None:
    """The spec of a module, found without importing it or its package; None if there is no such module."""
    if name in sys.modules:
        loaded: ModuleSpec | None = getattr(sys.modules[name], "__spec__", None)
        return loaded
    path = None
    package = name.rpartition(".")[0]
    if package:
        above = locate(package)
        if above is None or above.submodule_search_locations is None:
            return None
        path = above.submodule_search_locations
    for finder in sys.meta_path:
        spec = finder.find_spec(name, path)
        if spec is not None:
            return spec
    return None


def _source_of(spec: ModuleSpec) -> Source:
    if spec.origin is None and spec.submodule_search_locations is not None:
        return Source("", frozenset())  # a namespace package: a folder without code of its own
    if spec.origin is None or not spec.has_location:
        raise UserError(f"module '{spec.name}' has no source, {REMEDY}.")
    path = Path(spec.origin)
    try:
        if path.name.endswith(tuple(EXTENSION_SUFFIXES)):
            return Source(hashlib.sha256(path.read_bytes()).hexdigest(), frozenset())
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}), {REMEDY}.") from error
    if path.suffix != ".py":
        raise UserError(f"{path}: has no source, {REMEDY}.")
    package = spec.name if spec.submodule_search_locations is not None else spec.name.rpartition(".")[0]
    return read_module(str(path), package, (status.st_size, status.st_mtime_ns))


def _module_of(thing: Any) -> str:
    while isinstance(thing, partial):
        thing = thing.func
    module = getattr(thing, "__module__", None) or type(thing).__module__
    return str(module)


def _is_left_out(name: str, left_out: Collection[str]) -> bool:
    parts = name.split(".")
    below = (f"{'.'.join(parts[:end])}.*" for end in range(1, len(parts) + 1))
    return name in left_out or any(entry in left_out for entry in below)
