"""Classes that no importable module holds: defined in a notebook, a script, or a function.

Their code has no file that could be hashed as a module's is, so that it is read off the class itself: the
bytecode of its functions, and of everything defined in the same place that they refer to.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import suppress
from types import CodeType, FunctionType, ModuleType
from typing import Any

from harness.digests import PACKAGES, code_digest

_PLAIN = (str, bytes, int, float, complex, bool, type(None), range)


def is_importable(cls: type) -> bool:
    """Whether a process that imports the class's module finds the class in it."""
    try:
        found = importlib.util.find_spec(cls.__module__)
    except (ImportError, ValueError):  # a module made by hand, or `__main__`
        return False
    return found is not None and cls.__module__ != "__main__" and "<locals>" not in cls.__qualname__


def digest_class(cls: type) -> str:
    """SHA-256 (16 hex digits) over a class's code and all that it refers to where it was defined.

    Docstrings, line numbers and layout do not count. What comes from a module of this project counts with the
    module's code, from any other module by its name. Objects that are neither code nor plain values count by
    their type.
    """
    hasher = hashlib.sha256()
    for word in _words(cls, cls.__module__, set()):
        hasher.update(f"{word}\n".encode())
    return hasher.hexdigest()[:16]


def _words(found: Any, home: str, seen: set[int]) -> Iterator[str]:
    if isinstance(found, _PLAIN):
        yield repr(found)
        return
    if id(found) in seen:
        yield "again"
    elif isinstance(found, staticmethod | classmethod):
        yield from _words(found.__func__, home, seen)
    elif isinstance(found, property):
        for part in (found.fget, found.fset):
            yield from _words(part, home, seen)
    elif isinstance(found, tuple | list | frozenset | set | dict):
        yield from _container(found, home, seen)
    elif isinstance(found, ModuleType):
        yield _of_module(found.__name__, "")
    elif isinstance(found, type | FunctionType) and found.__module__ != home:
        yield _of_module(found.__module__, found.__qualname__)
    elif isinstance(found, type):
        seen.add(id(found))
        yield from _class(found, home, seen)
    elif isinstance(found, FunctionType):
        seen.add(id(found))
        yield from _function(found, home, seen)
    else:
        yield f"a {type(found).__module__}.{type(found).__qualname__}"


def _of_module(module: str, name: str) -> str:
    ours = module.split(".")[0] in PACKAGES
    return f"{module} {name} {code_digest(module) if ours else ''}"


def _container(found: Any, home: str, seen: set[int]) -> Iterator[str]:
    seen.add(id(found))  # it may hold itself
    yield f"{type(found).__name__} of {len(found)}"
    for item in sorted(found, key=repr) if isinstance(found, set | frozenset) else found:
        yield from _words(item, home, seen)
        if isinstance(found, dict):
            yield from _words(found[item], home, seen)
    seen.discard(id(found))


def _class(found: type, home: str, seen: set[int]) -> Iterator[str]:
    yield f"class {found.__qualname__}"
    for base in found.__bases__:
        yield from _words(base, home, seen)
    for name, value in sorted(vars(found).items()):
        special = name.startswith("__") and not isinstance(value, FunctionType)
        if not special and name != "_abc_impl":
            yield name
            yield from _words(value, home, seen)


def _function(found: FunctionType, home: str, seen: set[int]) -> Iterator[str]:
    yield f"function {found.__qualname__}"
    yield from _words(found.__defaults__, home, seen)
    yield from _words(found.__kwdefaults__, home, seen)
    for cell in found.__closure__ or ():
        with suppress(ValueError):  # nothing in it yet
            yield from _words(cell.cell_contents, home, seen)
    names: list[str] = []
    for constant in _code(found.__code__, found.__doc__, names):
        yield from _words(constant, home, seen)
    for name in names:
        if name in found.__globals__:
            yield name
            yield from _words(found.__globals__[name], home, seen)


def _code(code: CodeType, docstring: str | None, names: list[str]) -> Iterator[Any]:
    """A function's bytecode and constants; the names it looks up are added to `names`."""
    yield code.co_code
    names += code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code(constant, None, names)
        elif docstring is None or constant != docstring:
            yield constant
