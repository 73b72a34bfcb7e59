"""The part of source code that can change a result: modules without comments, definitions of scripts and notebooks."""

from __future__ import annotations

import ast
import linecache
import symtable
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import resolve_name
from inspect import unwrap
from pathlib import Path
from typing import Any

from harness.errors import UserError

REMEDY = "so changes of its code would go unnoticed: move it to a module (a .py file) that can be imported"
"""What to do if code cannot be read."""

MAIN = ("__main__", "__mp_main__")
"""Module names of a running script or notebook; the second in a process that `multiprocessing` started."""

BLIND = frozenset(
    {
        "abstractmethod",
        "cache",
        "cached_property",
        "classmethod",
        "contextmanager",
        "inference_mode",
        "lru_cache",
    }
    | {"no_grad", "override", "property", "setter", "staticmethod", "wraps"}
)
"""Decorators that ignore annotations. Others may read them, as `functools.singledispatch` does."""


@dataclass(frozen=True)
class Source:
    """Code without comments, docstrings, layout and annotations of functions, and its imports.

    code: its syntax tree as text, the same with every version of Python. imports: absolute dotted names; a name may
    be a module or an attribute of one.
    """

    code: str
    imports: frozenset[str]


@cache
def read_module(path: str, package: str, state: tuple[int, int]) -> Source:  # noqa: ARG001  for the cache
    """The source of a file.

    package: the package that its relative imports refer to.
    state: its size and time of modification, so that a changed file is read again.

    Raises:
        UserError: it cannot be read or is not Python.
    """
    try:
        return simplify(ast.parse(Path(path).read_bytes()), package)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}.") from error


def simplify(tree: ast.AST, package: str) -> Source:
    """The relevant part of a syntax tree, which is changed in place."""
    imports: set[str] = set()
    for node in _walk(tree):
        match node:
            case ast.ImportFrom():
                module = f"{'.' * node.level}{node.module or ''}"
                imports |= _absolute(module, package, [alias.name for alias in node.names])
            case ast.Import():
                imports |= {alias.name for alias in node.names}
            case ast.Call(args=[ast.Constant(value=str(module)), *_]):
                if _last_name(node.func) in ("import_module", "__import__"):
                    imports |= _absolute(module, package, [])
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                if all(_last_name(decorator) in BLIND for decorator in node.decorator_list):
                    _drop_annotations(node)
    return Source(_text_of(tree), frozenset(imports))


def _text_of(node: Any) -> str:
    """A syntax tree as text. Unlike `ast.dump` and `ast.unparse` it does not depend on the version of Python.

    Empty fields and empty parts of f-strings are left out, as some versions have more of them.
    """
    if isinstance(node, ast.Constant):
        return ascii(node.value)
    if isinstance(node, ast.JoinedStr):
        return f"JoinedStr({_text_of([part for part in node.values if not _is_empty_text(part)])})"
    if isinstance(node, ast.AST):
        fields = [
            f"{name}={_text_of(value)}"
            for name, value in ast.iter_fields(node)
            if value is not None and value != [] and name not in ("ctx", "kind", "type_comment")
        ]
        return f"{type(node).__name__}({', '.join(fields)})"
    if isinstance(node, list):
        return f"[{', '.join(map(_text_of, node))}]"
    return ascii(node)


def _is_empty_text(node: object) -> bool:
    return isinstance(node, ast.Constant) and node.value == ""


def _walk(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node, after docstrings and code for type checkers have been removed."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list) and block:
                kept = [part for statement in block for part in _without_words(statement)]
                setattr(node, field, kept or [ast.Pass()])
        yield node
        waiting += ast.iter_child_nodes(node)


def _without_words(statement: ast.stmt) -> list[ast.stmt]:
    match statement:
        case ast.Expr(value=ast.Constant(value=str())):
            return []
        case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
            return [part for other in statement.orelse for part in _without_words(other)]
    return [statement]


def _drop_annotations(function: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    function.returns = None
    taken = function.args
    for argument in (*taken.posonlyargs, *taken.args, *taken.kwonlyargs, taken.vararg, taken.kwarg):
        if argument is not None:
            argument.annotation = None


def _last_name(expression: ast.expr) -> str:
    match expression:
        case ast.Call(func=called):
            return _last_name(called)
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


def _absolute(module: str, package: str, names: list[str]) -> set[str]:
    """Modules that importing `names` from `module`, which may begin with dots, can load."""
    if module.startswith("."):
        try:
            module = resolve_name(module, package)
        except ImportError:  # beyond the top-level package: this import fails at run time, too
            return set()
    return {module, *(f"{module}.{name}" for name in names if name != "*")}


def source_in_main(thing: Any) -> Source:
    """The definition of a class or function of a script or notebook, and all definitions there that it uses.

    Plain values that it uses (numbers, strings, lists of them) are included. The rest of the script is not: changing
    the seeds in its last line does not change the method.

    Raises:
        UserError: a definition cannot be found, or it uses a value that is not plain.
    """
    space = vars(sys.modules[thing.__module__])
    parts: dict[str, str] = {}
    imports: set[str] = set()
    waiting = [thing]
    while waiting:
        used = waiting.pop()
        name = used.__qualname__.partition(".")[0]
        if name in parts:
            continue
        definition = _definition(used)
        found = simplify(definition, str(space.get("__package__") or ""))
        parts[name] = found.code
        imports |= found.imports
        for other in sorted(_global_names(ast.unparse(definition)) & space.keys() - {name}):
            value = _unwrapped(space[other])
            if isinstance(value, types.ModuleType):
                imports.add(value.__name__)
            elif isinstance(value, type | types.FunctionType):
                if value.__module__ in MAIN:
                    waiting.append(value)
                else:
                    imports.add(value.__module__)
            elif _is_plain(value):
                parts[f"{other} ="] = repr(value)
            elif type(value).__module__ != "typing" and not isinstance(value, types.BuiltinFunctionType):
                raise UserError(
                    f"{name}: uses '{other}', a {type(value).__name__} made in the script or notebook, "
                    "whose changes would go unnoticed: make it an option, or move both to a module (a .py file)."
                )
    return Source("\n".join(f"{name}\n{parts[name]}" for name in sorted(parts)), frozenset(imports))


def _definition(thing: Any) -> ast.AST:
    """The outermost class or function that contains `thing`, in its file or notebook cell."""
    name = thing.__qualname__.partition(".")[0]
    files = dict.fromkeys(code.co_filename for code in _codes(thing))
    script = getattr(sys.modules[thing.__module__], "__file__", None)
    for file in (*files, *([script] if script else [])):
        try:
            tree = ast.parse("".join(linecache.getlines(file)))
        except SyntaxError:
            continue
        kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        found = [node for node in ast.walk(tree) if isinstance(node, kinds) and node.name == name]
        if found and "<locals>" not in thing.__qualname__:
            return found[-1]  # the last definition is in force
    raise UserError(f"{thing.__qualname__}: its source cannot be found, {REMEDY}.")


def _codes(thing: Any) -> Iterator[types.CodeType]:
    for value in (thing, *vars(thing).values()):
        function = _unwrapped(value)
        if isinstance(function, types.FunctionType) and function.__module__ == thing.__module__:
            yield function.__code__


def _unwrapped(value: Any) -> Any:
    """The function inside `functools.partial`, `property`, `staticmethod` and decorators that set `__wrapped__`."""
    while True:
        if isinstance(value, partial):
            value = value.func
        elif isinstance(value, property):
            value = value.fget
        elif hasattr(value, "__wrapped__") and not isinstance(value, type):
            value = unwrap(value)
        else:
            return value


def _global_names(code: str) -> set[str]:
    """Global names that code uses; names local to a function are not included."""
    found: set[str] = set()
    waiting = [symtable.symtable(code, "definition", "exec")]
    while waiting:
        table = waiting.pop()
        waiting += table.get_children()
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (symbol.is_global() or table.get_type() == "module"):
                found.add(symbol.get_name())
    return found


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(part) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(
        value, bool | int | float | complex | str | bytes | Path | range | slice
    )
