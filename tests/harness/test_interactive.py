"""What is defined in a notebook has a digest that changes with its code, and with nothing else."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest

from harness import interactive
from harness.interactive import digest_class, is_importable
from methods.lora import LoRA
from tests.support.paths import ROOT

CODE = '''
import torch
from methods.base import Inserted, Method, freeze
from methods.bottleneck import BottleneckAdapter

SCALE = 2.0
KNOWN = frozenset({"query", "value", "key"})

def scaled(hidden):
    """Scaled."""
    return SCALE * hidden

class Shift(Inserted):
    """One offset."""

    def __init__(self, width, bias=0.0):
        super().__init__()
        self.offset = torch.nn.Parameter(torch.full((width,), bias))

    def forward(self, hidden):
        return hidden + scaled(self.offset)

class Shifting(Method):
    """A method."""

    name, summary, source = "shifting", "offsets", "here"
    learning_rate_scale = 10.0

    def adapt(self, backbone, generator):
        """Adapt."""
        freeze(backbone)
        wanted = [name for name in KNOWN if name in {"query", "value"}]
        for block in backbone.blocks:
            block.sequential["mlp"] = Shift(backbone.width)
'''


def digest(code: str) -> str:
    """Of `Shifting`, as if the code had been typed into a notebook."""
    module = ModuleType("__main__")
    exec(compile(code, "<cell>", "exec"), vars(module))
    return digest_class(vars(module)["Shifting"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SCALE = 2.0", "SCALE = 3.0"),
        ("SCALE * hidden", "SCALE + hidden"),
        ("bias=0.0", "bias=1.0"),
        ("hidden + scaled", "hidden - scaled"),
        ("learning_rate_scale = 10.0", "learning_rate_scale = 5.0"),
        ('sequential["mlp"]', 'sequential["attention"]'),
        ('in {"query", "value"}', 'in {"query"}'),
        ("freeze(backbone)", "pass"),
        ("class Shift(Inserted)", "class Shift(torch.nn.Module)"),
    ],
)
def test_a_change_of_code_is_seen_wherever_it_is(old: str, new: str) -> None:
    assert old in CODE
    assert digest(CODE.replace(old, new)) != digest(CODE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""Adapt."""', '"""Adapt the backbone."""'),
        ('    """A method."""\n', ""),
        ("SCALE = 2.0", "\n# the scale\nSCALE = 2.0"),
        ("def scaled", "unused = 3\n\ndef scaled"),
    ],
)
def test_docstrings_comments_and_what_is_not_used_do_not_count(old: str, new: str) -> None:
    assert old in CODE
    assert digest(CODE.replace(old, new)) == digest(CODE)


def test_the_code_of_this_project_that_is_used_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(CODE)
    monkeypatch.setattr(interactive, "code_digest", lambda module: f"changed {module}")
    assert digest(CODE) != before


def test_it_is_the_same_in_every_process() -> None:
    """Sets of text have another order in each."""
    script = dedent(
        f"""
        exec(compile({CODE!r}, "<cell>", "exec"))
        from harness.interactive import digest_class
        print(digest_class(Shifting))
        """
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert found == {f"{digest(CODE)}\n"}


def test_a_list_that_holds_itself_has_a_digest() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert digest_class(type("Odd", (), {"__module__": "__main__", "loop": loop}))


def test_only_what_another_process_finds_is_importable() -> None:
    class Local:
        pass

    by_hand = type("ByHand", (), {"__module__": "nowhere_to_be_found"})
    here = type("Here", (), {"__module__": "__main__"})
    assert [is_importable(each) for each in (LoRA, Local, by_hand, here)] == [True, False, False, False]
