"""Methods, tasks and backbones by name. A module is imported only when its name is looked up."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from traceback import extract_tb
from typing import TYPE_CHECKING, Any, Literal, cast

from harness.errors import UserError, did_you_mean, one_line
from harness.options import build_options, format_value, guess_value
from harness.specs import Spec, canonical, combine, member_names, parse_specs

if TYPE_CHECKING:
    from harness.backbones.base import Backbone, BackboneOptions
    from methods.base import Method
    from tasks.base import Task
    from tasks.scorer import Scorer

Kind = Literal["methods", "tasks", "backbones"]
"""What can be registered. Third parties register under the entry-point group `harness.<kind>`."""

BUILT_IN: Mapping[Kind, Mapping[str, str]] = {
    "methods": {
        "full": "methods.full:Full",
        "classifier": "methods.classifier:Classifier",
        "bitfit": "methods.bitfit:BitFit",
        "lora": "methods.lora:LoRA",
        "adapter": "methods.adapter:SequentialAdapter",
        "parallel": "methods.parallel:ParallelAdapter",
        "shallow_prompt": "methods.prompts:ShallowPrompt",
        "deep_prompt": "methods.prompts:DeepPrompt",
        "das": "methods.das:DAS",
        "skip": "methods.skip:Skip",
        "eas": "methods.eas:EAS",
        "roe": "methods.roe:RoE",
        "vp": "methods.visual_prompt:VP",
        "tvp": "methods.visual_prompt:TVP",
        "tome": "methods.tome:Tome",
        "pumer": "methods.pumer:Pumer",
        "lst": "methods.lst:LST",
    },
    "tasks": {
        "vqa": "tasks.vqa.task:VQA",
        "nlvr2": "tasks.nlvr2.task:NLVR2",
        "snli_ve": "tasks.snli_ve.task:SNLIVE",
        "retrieval": "tasks.retrieval.task:Retrieval",
        "nlvr": "tasks.nlvr.task:NLVR",
        "scienceqa": "tasks.scienceqa.task:ScienceQA",
        "pope": "tasks.pope.task:POPE",
    },
    "backbones": {
        "vilt": "harness.backbones.vilt.loading:load_vilt",
        "vilt-mini": "harness.backbones.vilt.loading:load_vilt_mini",
        "meter": "harness.backbones.meter.loading:load_meter",
        "meter-mini": "harness.backbones.meter.loading:load_meter_mini",
        "bridgetower": "harness.backbones.bridgetower.loading:load_bridgetower",
        "llava": "harness.backbones.llava.loading:load_llava",
        "llava-mini": "harness.backbones.llava.loading:load_llava_mini",
    },
}
"""`module:attribute` by name, in the order in which tables list them."""

SCORERS: Mapping[str, str] = {
    "vqa": "tasks.vqa.scorer:SCORER",
    "nlvr2": "tasks.nlvr2.scorer:SCORER",
    "snli_ve": "tasks.snli_ve.scorer:SCORER",
    "retrieval": "tasks.retrieval.scorer:SCORER",
    "nlvr": "tasks.nlvr.scorer:SCORER",
    "scienceqa": "tasks.scienceqa.scorer:SCORER",
    "pope": "tasks.pope.scorer:SCORER",
}
"""`module:attribute` of the scorer of each built-in task, so that it can be read without importing torch."""

REFERENCE_METHOD = "full"
"""Tables, significance tests and profiles state changes relative to this method."""
DEFAULT_BACKBONE = "vilt-mini"
"""The backbone of a run by default: embedded, small, needs no download."""

ADAPTERS_LIBRARY = (
    "seq_bn",
    "double_seq_bn",
    "par_bn",
    "scaled_par_bn",
    "compacter",
    "compacter++",
    "ia3",
    "dora",
    "adapters:lora",
)
"""Configurations of the `adapters` library that work here, with the prefix `adapters:` where the name is taken."""

ADAPTERS_REFUSED = ("vera",)
"""Configurations of the `adapters` library that are refused with a reason."""

PEFT_LIBRARY = (
    *(
        "peft:lora",
        "peft:dora",
        "peft:rslora",
        "peft:pissa",
        "peft:olora",
        "peft:loha",
        "peft:lokr",
        "peft:ia3",
    ),
    *("peft:ln_tuning", "peft:oft", "peft:boft", "peft:hra", "peft:fourierft", "peft:waveft", "peft:vera"),
    *("peft:pvera", "peft:vblora", "peft:shira", "peft:c3a", "peft:miss", "peft:road", "peft:gralora"),
    *("peft:delora", "peft:hira", "peft:psoft", "peft:glora", "peft:deft", "peft:peanut", "peft:beft"),
    *("peft:unilora", "peft:tinylora", "peft:frod"),
)
"""Tuners of the `peft` library that work here (`methods.peft_tuners`)."""

_PEFT_METHOD = "methods.peft_library:PeftMethod"
_ADAPTERS_METHOD = "methods.adapters_library:AdaptersMethod"
_COMPOSED_METHOD = "methods.composed:Composed"


def names(kind: Kind) -> list[str]:
    """All names of a kind: the built-in ones in the order of tables, the libraries', third parties'.

    Raises:
        UserError: an installed package registers a name that is taken.
    """
    library = [*ADAPTERS_LIBRARY, *PEFT_LIBRARY] if kind == "methods" else []
    return [*BUILT_IN[kind], *library, *sorted(_third_parties(kind))]


def third_party_names(kind: Kind) -> list[str]:
    """The names of a kind that installed packages register."""
    return sorted(_third_parties(kind))


def built_in_names(kind: Kind) -> list[str]:
    """The built-in names of a kind, in the order in which tables list them."""
    return list(BUILT_IN[kind])


def locate(kind: Kind, name: str) -> str:
    """The `module:attribute` of a name, without importing it.

    Raises:
        UserError: there is no such name.
    """
    third_parties = _third_parties(kind)  # First: a clash is an error even for a built-in name.
    if name in BUILT_IN[kind]:
        return BUILT_IN[kind][name]
    if kind == "methods" and name in (*ADAPTERS_LIBRARY, *ADAPTERS_REFUSED):
        return _ADAPTERS_METHOD
    if kind == "methods" and name.startswith("peft:"):
        return _PEFT_METHOD  # it says why a tuner does not work
    if name in third_parties:
        return third_parties[name].value
    raise UserError(f"there is no {kind[:-1]} '{name}'.{did_you_mean(name, names(kind))}")


def resolve_method(name: str) -> type[Method[Any]]:
    """The class of a method. Those of a library share one class, and so do all combined methods.

    Raises:
        UserError: there is no such method, or it cannot be imported or is not a subclass of Method.
    """
    members = member_names(name)
    for member in members:
        locate("methods", member)  # An unknown name is reported before anything heavy is imported.
    from methods.base import Method

    if len(members) > 1:
        return cast("type[Method[Any]]", _import(_COMPOSED_METHOD))
    found: type[Method[Any]] = _subclass(_load("methods", name), Method, "methods", name)
    return found


def resolve_task(name: str) -> type[Task[Any]]:
    """The class of a task.

    Raises:
        UserError: there is no such task, or it cannot be imported or is not a subclass of Task.
    """
    locate("tasks", name)
    from tasks.base import Task

    found: type[Task[Any]] = _subclass(_load("tasks", name), Task, "tasks", name)
    return found


def resolve_scorer(task: str) -> Scorer:
    """The scorer of a task; for a built-in task the task itself is not imported.

    Raises:
        UserError: there is no such task, or it cannot be imported, is not a subclass of Task or has no scorer.
    """
    if task in SCORERS:
        module, _, attribute = SCORERS[task].partition(":")
        return getattr(importlib.import_module(module), attribute)  # type: ignore[no-any-return]
    scorer: object = getattr(resolve_task(task), "scorer", None)
    from tasks.scorer import Scorer

    if not isinstance(scorer, Scorer):
        raise UserError(f"task '{task}' ({locate('tasks', task)}) has no scorer (tasks.scorer.Scorer).")
    return scorer


def resolve_backbone(name: str) -> Callable[[BackboneOptions], Backbone]:
    """The function that loads a backbone.

    Raises:
        UserError: there is no such backbone, or it cannot be imported or called.
    """
    loader: object = _load("backbones", name)
    if not callable(loader):
        raise UserError(f"backbone '{name}' ({locate('backbones', name)}) is not a function that loads one.")
    return loader


def build_method(spec: Spec) -> Method[Any]:
    """A new instance of the method that `spec` names, with its options; a copy if the spec holds a method object.

    Raises:
        UserError: there is no such method or option, or a value does not fit.
    """
    if spec.instance is not None:
        return cast("Method[Any]", copy.deepcopy(spec.instance))
    method_class: Callable[..., Method[Any]] = resolve_method(spec.name)
    if spec.members:
        return method_class([build_method(member) for member in spec.members])
    if spec.name in (*ADAPTERS_LIBRARY, *ADAPTERS_REFUSED):
        overrides = {key: guess_value(text) for key, text in spec.options.items()}
        method = method_class(spec.name.removeprefix("adapters:"), overrides)
        # Results of the library's LoRA must not be stored under the name of ours.
        method.name = spec.name  # type: ignore[misc]
        return method
    if spec.name.startswith("peft:"):
        overrides = {key: guess_value(text) for key, text in spec.options.items()}
        return method_class(spec.name.removeprefix("peft:"), overrides)
    return method_class(build_options(resolve_method(spec.name).Options, spec.options, spec.name))


def build_task(spec: Spec) -> Task[Any]:
    """A new instance of the task that `spec` names, with its options.

    Raises:
        UserError: there is no such task or option, or a value does not fit.
    """
    task_class = resolve_task(spec.name)
    return task_class(build_options(task_class.Options, spec.options, spec.name))


def read_specs(value: object, kind: Kind) -> list[Spec]:
    """Specs from text (`das,lora[r=8]`; `all`: every built-in one), a spec, a method object, or a list of these.

    Names in text are matched without case: `LoRA` is `lora`.

    Raises:
        UserError: the text is malformed, the value is none of these, or a spec appears twice.
    """
    given = list(value) if isinstance(value, list | tuple) else [value]
    found: list[Spec] = []
    for item in given:
        if isinstance(item, str):
            specs = [Spec(name) for name in BUILT_IN[kind]] if item == "all" else parse_specs(item)
            specs = [_as_registered(each, kind) for each in specs]
        elif isinstance(item, Spec):
            specs = [item]
        elif kind == "methods":
            specs = [_spec_of(item)]
        else:
            raise UserError(f"must be the names of {kind}, not {item!r}.")
        for spec in specs:
            if spec.members and kind != "methods":
                raise UserError(f"{canonical(spec)}: only methods are combined with '+'.")
            if spec in found:
                raise UserError(f"{canonical(spec)} appears twice.")
            found.append(spec)
    return found


def _as_registered(spec: Spec, kind: Kind) -> Spec:
    """The spec with its name as it is registered; unchanged if no name, or more than one, differs in case only."""
    if spec.members:
        return combine(_as_registered(member, kind) for member in spec.members)
    known = names(kind)
    alike = [name for name in known if name.casefold() == spec.name.casefold()]
    return Spec(alike[0], spec.options) if spec.name not in known and len(alike) == 1 else spec


def _spec_of(method: object) -> Spec:
    """A method object as a spec. Its name must not be that of another method."""
    from methods.base import Method

    if not isinstance(method, Method):
        raise UserError(f"must be names or objects of methods, not {method!r}.")
    if method.members:
        return combine(map(_spec_of, method.members), method)
    if method.name in names("methods") and type(method) is not resolve_method(method.name):
        raise UserError(
            f"{type(method).__qualname__} calls itself '{method.name}', which is another method; "
            "give it a name of its own."
        )
    options = {key: format_value(value) for key, value in method.config().items() if value not in ([], ())}
    return Spec(method.name, options, method)


@cache
def _third_parties(kind: Kind) -> dict[str, EntryPoint]:
    taken = {*BUILT_IN[kind], *((*ADAPTERS_LIBRARY, *PEFT_LIBRARY) if kind == "methods" else ())}
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=f"harness.{kind}"):
        if entry.name in taken:
            raise UserError(
                f"{_origin(entry)} registers {kind[:-1]} '{entry.name}', which is built in; "
                "rename its entry point or uninstall it."
            )
        if len(member_names(entry.name)) > 1:
            raise UserError(
                f"{_origin(entry)} registers {kind[:-1]} '{entry.name}', but '+' combines methods; "
                "rename its entry point."
            )
        if entry.name in found and found[entry.name] != entry:
            raise UserError(
                f"{_origin(found[entry.name])} and {_origin(entry)} both register {kind[:-1]} "
                f"'{entry.name}'; uninstall one."
            )
        found[entry.name] = entry
    return found


def _load(kind: Kind, name: str) -> Any:
    location = locate(kind, name)
    entry = _third_parties(kind).get(name)
    if entry is None:
        return _import(location)
    try:
        return entry.load()
    except (Exception, SystemExit) as error:  # whatever somebody else's code does when it is imported
        raise UserError(
            f"{kind[:-1]} '{name}' of {_origin(entry)} cannot be loaded: {_place_of(error)}{one_line(error)}."
        ) from error


def _import(location: str) -> Any:
    module, _, attribute = location.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _place_of(error: BaseException) -> str:
    """`file, line N: ` of a syntax error, else of the last line that an error passed."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}, line {error.lineno}: "
    frames = [frame for frame in extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    return f"{frames[-1].filename}, line {frames[-1].lineno}: " if frames else ""


def _subclass(found: Any, base: type[Any], kind: Kind, name: str) -> Any:
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{kind[:-1]} '{name}' ({locate(kind, name)}) is no subclass of {base.__name__}.")
    own_name = getattr(found, "name", name)
    if name in _third_parties(kind) and own_name != name:
        raise UserError(
            f"{kind[:-1]} '{name}' ({locate(kind, name)}) calls itself '{own_name}'; the two must agree."
        )
    return found


def _origin(entry: EntryPoint) -> str:
    return f"package '{entry.dist.name}'" if entry.dist is not None else f"'{entry.value}'"
