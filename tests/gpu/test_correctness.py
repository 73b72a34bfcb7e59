"""What the checks on a GPU cover."""

from __future__ import annotations

from harness.registry import ADAPTERS_LIBRARY, BUILT_IN, PEFT_LIBRARY
from harness.specs import parse_spec
from tests.gpu.correctness import METHODS


def test_every_method_and_one_of_each_library_is_checked_on_a_gpu() -> None:
    specs = map(parse_spec, METHODS)
    checked = {member.name for spec in specs for member in (spec.members or (spec,))}
    assert BUILT_IN["methods"].keys() <= checked
    assert checked & set(ADAPTERS_LIBRARY)
    assert checked & set(PEFT_LIBRARY)
