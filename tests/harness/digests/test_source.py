"""Comments, layout and annotations do not change a digest; all other code does, also in a script or notebook."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from harness.digests.source import Source, simplify
from tests.support.paths import ROOT


def read(text: str, package: str = "a.b") -> Source:
    return simplify(ast.parse(text), package)


PLAIN = """
import os

def scale(x, *, by=2):
    return x * by

class Shift:
    width: int = 3
    def forward(self, hidden):
        return hidden + self.width
"""

DRESSED = '''"""What it is."""
import os  # for nothing

def scale(x: "Tensor", *, by: float = 2) -> "Tensor":
    """Twice."""
    return (x
            * by)


class Shift:
    "Another docstring."
    width: int = 3
    """Of the offset."""

    def forward(self, hidden: list[int],) -> list[int]:
        # as published
        return hidden + self.width
'''


def test_comments_layout_and_annotations_of_functions_do_not_change_the_digest() -> None:
    assert read(PLAIN).code == read(DRESSED).code


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x * by", "x + by"),
        ("by=2", "by=3"),
        ("width: int = 3", "width: float = 3"),  # a field's type decides how an option is read
        ("import os", "import os.path as os"),
        ("class Shift", "@register\nclass Shift"),
    ],
)
def test_everything_else_changes_the_digest(old: str, new: str) -> None:
    assert old in PLAIN
    assert read(PLAIN).code != read(PLAIN.replace(old, new)).code


def test_annotations_count_where_a_decorator_may_read_them() -> None:
    text = "@{}\ndef f(x: {}):\n    return 1"
    assert (
        read(text.format("handle.register", "int")).code != read(text.format("handle.register", "str")).code
    )
    for blind in ("staticmethod", "torch.no_grad()", "functools.cache"):
        assert read(text.format(blind, "int")).code == read(text.format(blind, "str")).code


def test_text_does_not_depend_on_the_version_of_python() -> None:
    """From 3.12 on `ast.unparse` quotes f-strings differently, and trees have empty parts and type parameters."""
    text = "def f(x, *, by=None):\n    return f\"{x['a']:>{by}} é\", {**x, 'b': ...}, x[1:]"
    assert read(text).code == (
        "Module(body=[FunctionDef(name='f', args=arguments(args=[arg(arg='x')], kwonlyargs=[arg(arg='by')], "
        "kw_defaults=[None]), body=[Return(value=Tuple(elts=["
        "JoinedStr([FormattedValue(value=Subscript(value=Name(id='x'), slice='a'), conversion=-1, "
        "format_spec=JoinedStr(['>', FormattedValue(value=Name(id='by'), conversion=-1)])), ' \\xe9']), "
        "Dict(keys=[None, 'b'], values=[Name(id='x'), Ellipsis]), "
        "Subscript(value=Name(id='x'), slice=Slice(lower=1))]))])])"
    )


def test_function_with_only_a_docstring_is_kept() -> None:
    assert read('def f():\n    "nothing yet"').code == read("def f(): pass").code


def test_relative_and_nested_imports_are_found_as_absolute_names() -> None:
    found = read(
        "import c.d as e\n"
        "from f import g\n"
        "from . import near\n"
        "from .sub import *\n"
        "from ..above import x\n"
        "class A:\n"
        "    def m(self):\n"
        "        try:\n"
        "            from .late import y\n"
        "        except ImportError:\n"
        "            import importlib\n"
        "            importlib.import_module('.named', 'ignored')\n"
    )
    assert found.imports == {
        *("c.d", "f", "f.g", "a.b", "a.b.near", "a.b.sub", "a.above", "a.above.x"),
        *("a.b.late", "a.b.late.y", "importlib", "a.b.named"),
    }


def test_imports_for_type_checkers_do_not_count() -> None:
    checked = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import heavy\nelse:\n    import light\nx = 1"
    plain = "from typing import TYPE_CHECKING\nimport light\nx = 1"
    assert read(checked) == read(plain)


SCRIPT = """
import decimal

import beside

SCALE = 2.0


def start(width):
    return [0.0] * width


class Shift:
    def __init__(self, width):
        self.offset = start(width)

    def forward(self, hidden):
        results = hidden + SCALE * beside.halved(self.offset[0])
        return results


class ShiftTuning:
    name = "shift"

    def adapt(self, backbone):
        for block in backbone.blocks:
            block.sequential["mlp"] = Shift(backbone.width)


results = decimal.Decimal(2)  # another one than that of forward
"""

SHOWN = """
from harness.errors import UserError
from harness.digests.code import code_digest, reachable
try:
    found = reachable([ShiftTuning])
    print(code_digest(found), *sorted(found))
except UserError as error:
    print("refused:", error)
"""

BESIDE = "def halved(x):\n    return x / 2\n"

NOTEBOOK = """
import linecache, sys
sys.path.insert(0, {folder!r})
del __file__
for number, text in enumerate({cells!r}):
    name = f"<ipython-input-{{number}}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    exec(compile(text, name, "exec"), globals())
"""


def run_script(folder: Path, script: str, notebook: bool = False) -> str:
    """Run a script, or its parts as cells of a notebook, in a process; returns what it prints."""
    (folder / "beside.py").write_text(BESIDE) if not (folder / "beside.py").exists() else None
    path = folder / "script.py"
    if notebook:
        first, second = script.split("class ShiftTuning")
        cells = [first, f"class ShiftTuning{second}", SHOWN]
        path.write_text(NOTEBOOK.format(folder=str(folder), cells=cells))
    else:
        path.write_text(script + SHOWN)
    done = subprocess.run(
        [sys.executable, str(path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("notebook", [False, True])
def test_class_of_a_script_or_notebook_is_hashed_with_everything_it_uses(
    tmp_path: Path, notebook: bool
) -> None:
    whole = run_script(tmp_path, SCRIPT, notebook)
    assert whole.split()[1:] == ["__main__.ShiftTuning", "beside"]
    unused = SCRIPT.replace("decimal.Decimal(2)", "decimal.Decimal(3)")
    assert run_script(tmp_path, unused, notebook) == whole
    for old, new in (
        ("SCALE = 2.0", "SCALE = 2.5"),
        ("[0.0] * width", "[1.0] * width"),
        ("block.sequential", "block.parallel"),
    ):
        assert old in SCRIPT
        assert run_script(tmp_path, SCRIPT.replace(old, new), notebook) != whole
    (tmp_path / "beside.py").write_text(BESIDE.replace("/ 2", "/ 4"))
    assert run_script(tmp_path, SCRIPT, notebook) != whole


def test_code_that_cannot_be_followed_is_refused(tmp_path: Path) -> None:
    made = SCRIPT.replace("SCALE = 2.0", "SCALE = decimal.Decimal(2)")
    assert run_script(tmp_path, made) == (
        "refused: Shift: uses 'SCALE', a Decimal made in the script or notebook, whose changes would go unnoticed: "
        "make it an option, or move both to a module (a .py file)."
    )
    typed = SCRIPT.replace("class ShiftTuning", "exec('''class ShiftTuning").replace(
        "\n\nresults", "''')\n\nresults"
    )
    assert "refused: ShiftTuning: its source cannot be found" in run_script(tmp_path, typed)
