"""Names are resolved lazily, clashes and typos are reported, third parties register by entry points."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from harness import registry
from harness.cli.methods import list_names
from harness.errors import UserError
from harness.specs import canonical, parse_spec
from tests.support.paths import ROOT

Register = Callable[..., None]


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Iterator[Register]:
    """Pretend that packages with these entry points (group, name, value) are installed."""

    def install(*entries: tuple[str, str, str]) -> None:
        found = [EntryPoint(name, value, group) for group, name, value in entries]
        monkeypatch.setattr(registry, "entry_points", lambda group: [e for e in found if e.group == group])
        registry._third_parties.cache_clear()

    yield install
    monkeypatch.undo()
    registry._third_parties.cache_clear()


def third_party_module(monkeypatch: pytest.MonkeyPatch, **attributes: Any) -> None:
    module = type(sys)("third_party")
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, "third_party", module)


def test_names_and_places_are_known_without_importing_torch() -> None:
    code = (
        "import sys; from harness import registry, specs\n"
        "from harness.records import environment, record, store\n"
        "from harness.analysis import stats\n"
        "for kind in registry.BUILT_IN:\n"
        "    for name in registry.names(kind): registry.locate(kind, name)\n"
        "try: registry.resolve_method('lroa')\n"
        "except Exception as error: print(error)\n"
        "print('torch' in sys.modules, 'adapters' in sys.modules, 'pandas' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout == "there is no method 'lroa'. Did you mean 'lora'?\nFalse False False\n"


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in registry.BUILT_IN for name in registry.BUILT_IN[kind]],
)
def test_every_built_in_name_points_to_an_existing_class_or_function(kind: registry.Kind, name: str) -> None:
    module, _, attribute = registry.BUILT_IN[kind][name].partition(":")
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text()
    assert f"class {attribute}(" in source or f"def {attribute}(" in source


def test_a_built_in_method_is_built_with_its_options() -> None:
    method = registry.build_method(parse_spec("lora[r=2,targets=query]"))
    assert type(method) is registry.resolve_method("lora")
    assert (method.name, method.config()["r"], method.config()["targets"]) == ("lora", 2, ("query",))


@pytest.mark.parametrize("name", registry.BUILT_IN["methods"])
def test_built_in_methods_and_their_registered_names_agree(name: str) -> None:
    assert registry.resolve_method(name).name == name
    assert registry.build_method(parse_spec(name)).name == name


@pytest.mark.parametrize("name", registry.BUILT_IN["tasks"])
def test_a_built_in_tasks_scorer_is_the_one_that_is_found_without_importing_the_task(name: str) -> None:
    assert registry.resolve_scorer(name) is registry.resolve_task(name).scorer


def test_a_third_partys_scorer_is_its_class_attribute(
    register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.base import Task
    from tasks.scorer import Scorer

    scorer = Scorer(lambda predictions: {"hits": 1.0})
    third_party_module(
        monkeypatch,
        Mine=type("Mine", (Task,), {"name": "mine", "scorer": scorer}),
        Without=type("Without", (Task,), {"name": "without"}),
    )
    register(
        ("harness.tasks", "mine", "third_party:Mine"), ("harness.tasks", "without", "third_party:Without")
    )
    assert registry.resolve_scorer("mine") is scorer
    with pytest.raises(UserError, match=r"task 'without' .third_party:Without. has no scorer"):
        registry.resolve_scorer("without")


def test_built_in_names_have_the_order_of_the_tables_and_include_full() -> None:
    assert registry.built_in_names("methods") == list(registry.BUILT_IN["methods"])
    assert registry.resolve_method(registry.REFERENCE_METHOD).name in registry.built_in_names("methods")


def test_a_task_is_built_with_its_options() -> None:
    task = registry.build_task(parse_spec("vqa[limit_train=7]"))
    assert (task.name, task.config()["limit_train"]) == ("vqa", 7)


def test_configurations_of_the_adapters_library_get_their_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    from methods.base import Method

    class Recorded(Method[Any]):
        def __init__(self, config_name: str, overrides: dict[str, Any]) -> None:
            self.given = (config_name, overrides)

        def adapt(self, backbone: Any, generator: Any) -> None:
            raise NotImplementedError

    third_party_module(monkeypatch, Recorded=Recorded)
    monkeypatch.setattr(registry, "_ADAPTERS_METHOD", "third_party:Recorded")
    method: Any = registry.build_method(
        parse_spec("seq_bn[reduction_factor=16,non_linearity=gelu,mh_adapter=true]")
    )
    assert method.given == ("seq_bn", {"reduction_factor": 16, "non_linearity": "gelu", "mh_adapter": True})
    theirs: Any = registry.build_method(parse_spec("adapters:lora"))
    assert (theirs.name, theirs.given) == ("adapters:lora", ("lora", {}))


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("methods", "lroa", "there is no method 'lroa'. Did you mean 'lora'?"),
        ("methods", "seq_bm", "there is no method 'seq_bm'. Did you mean 'seq_bn'?"),
        ("tasks", "zzz", "there is no task 'zzz'. Known: .*vqa"),
        ("backbones", "vlit", "there is no backbone 'vlit'. Did you mean 'vilt'?"),
    ],
)
def test_unknown_names_get_suggestions(kind: registry.Kind, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        registry.locate(kind, name)


def test_names_are_matched_without_case(register: Register) -> None:
    register(("harness.methods", "Mine", "third_party:Mine"), ("harness.methods", "mine", "third_party:mine"))
    written = registry.read_specs("LoRA[r=8],DAS+BitFit,Mine", "methods")
    assert [canonical(spec) for spec in written] == ["lora[r=8]", "bitfit+das", "Mine"]
    assert registry.read_specs("MINE", "methods")[0].name == "MINE"  # which of the two is not known
    with pytest.raises(UserError, match="lora appears twice"):
        registry.read_specs("lora,LORA", "methods")


def test_a_third_partys_method_is_found_by_its_entry_point(
    register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    from methods.full import Full

    third_party_module(monkeypatch, Mine=type("Mine", (Full,), {"name": "mine"}))
    register(("harness.methods", "mine", "third_party:Mine"))
    assert "mine" in registry.names("methods")
    assert registry.resolve_method("mine").name == "mine"
    assert "mine" not in registry.names("tasks")


def test_a_third_partys_backbone_is_a_function(register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    third_party_module(monkeypatch, load=len, not_one=3)
    register(
        ("harness.backbones", "a", "third_party:load"), ("harness.backbones", "b", "third_party:not_one")
    )
    assert registry.resolve_backbone("a") is len  # type: ignore[comparison-overlap]
    with pytest.raises(UserError, match=r"'b' .third_party:not_one. is not a function"):
        registry.resolve_backbone("b")


@pytest.mark.parametrize(("name", "group"), [("lora", "methods"), ("seq_bn", "methods"), ("vqa", "tasks")])
def test_a_name_that_is_built_in_cannot_be_taken(register: Register, name: str, group: registry.Kind) -> None:
    register((f"harness.{group}", name, "third_party:Mine"))
    with pytest.raises(
        UserError, match=f"'third_party:Mine' registers {group[:-1]} '{name}', which is built in"
    ):
        registry.locate(group, name)
    with pytest.raises(UserError, match="built in"):
        registry.names(group)


def test_two_packages_cannot_claim_one_name(register: Register) -> None:
    register(("harness.tasks", "x", "one:X"), ("harness.tasks", "x", "two:X"))
    with pytest.raises(UserError, match="'one:X' and 'two:X' both register task 'x'"):
        registry.names("tasks")


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({}, "task 'x' of 'third_party:X' cannot be loaded"),
        ({"X": 3}, "is no subclass of Task"),
        ({"X": dict}, "is no subclass of Task"),
    ],
)
def test_a_third_party_that_is_broken_is_named(
    register: Register, monkeypatch: pytest.MonkeyPatch, attributes: dict[str, Any], message: str
) -> None:
    third_party_module(monkeypatch, **attributes)
    register(("harness.tasks", "x", "third_party:X"))
    with pytest.raises(UserError, match=message):
        registry.resolve_task("x")


def test_third_party_name_must_equal_its_entry_point(
    register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    from methods.full import Full

    third_party_module(monkeypatch, X=Full)
    register(("harness.methods", "x", "third_party:X"))
    with pytest.raises(UserError, match="calls itself 'full'"):
        registry.resolve_method("x")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise RuntimeError('no\\nlicence')", "broken_plugin.py, line 1: RuntimeError: no"),
        ("import sys; sys.exit(3)", "broken_plugin.py, line 1: SystemExit: 3"),
        ("x = (", "broken_plugin.py, line 1: SyntaxError: '(' was never closed"),
        ("import no_such_module", "broken_plugin.py, line 1: ModuleNotFoundError: No module named"),
        ("x = 1", "has no attribute 'Method'"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_named_and_the_rest_is_listed(
    register: Register,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    code: str,
    message: str,
) -> None:
    (tmp_path / "broken_plugin.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_plugin", raising=False)
    register(
        ("harness.methods", "brk", "broken_plugin:Method"), ("harness.tasks", "brkt", "broken_plugin:Method")
    )
    with pytest.raises(UserError, match="method 'brk' of 'broken_plugin:Method' cannot be loaded: ") as error:
        registry.resolve_method("brk")
    assert message in str(error.value)
    list_names()
    shown = capsys.readouterr().out
    assert "lora" in shown
    assert "broken: task 'brkt'" in shown
    assert shown.count("broken: ") == 2
