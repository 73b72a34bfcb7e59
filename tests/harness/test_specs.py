"""Specs: the inline grammar, typed options, labels, experiment files, and errors that say where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config import read_experiment
from harness.errors import UserError
from harness.options import build_options, format_value, guess_value
from harness.specs import Spec, canonical, options_label, parse_spec, parse_specs


@dataclass(frozen=True)
class Options:
    r: int = 4
    alpha: float | None = None
    merge: bool = True
    name: str = "auto"
    variant: Literal["sound", "published"] = "sound"
    reward: Literal["a", "b"] | None = None
    blocks: tuple[str, ...] = ()
    sizes: tuple[int, ...] = (1,)
    betas: tuple[float, float] = (0.9, 0.98)

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError("r must be at least 1")


NAMES = st.from_regex(r"[A-Za-z0-9_.:+-]{1,12}", fullmatch=True)
KEYS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
TEXTS = st.text(st.characters(blacklist_characters="[],", blacklist_categories=["Cs"]), max_size=12).map(
    str.strip
)
SPECS = st.builds(Spec, NAMES, st.dictionaries(KEYS, TEXTS, max_size=4))
OPTIONS = st.builds(
    Options,
    r=st.integers(1, 10**9),
    alpha=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    merge=st.booleans(),
    name=TEXTS,
    variant=st.sampled_from(["sound", "published"]),
    reward=st.sampled_from([None, "a", "b"]),
    blocks=st.lists(st.from_regex(r"[a-z]+\.[0-9]", fullmatch=True), max_size=3).map(tuple),
    sizes=st.lists(st.integers(-5, 99), max_size=3).map(tuple),
    betas=st.tuples(st.floats(0.5, 1), st.floats(0.5, 1)),
)


def test_commas_in_brackets_separate_options_and_others_separate_specs() -> None:
    assert parse_specs(" das[skip=4, blocks=joint.3+7],lora[r=8] , seq_bn,full[]") == [
        Spec("das", {"skip": "4", "blocks": "joint.3+7"}),
        Spec("lora", {"r": "8"}),
        Spec("seq_bn"),
        Spec("full"),
    ]


@given(SPECS)
def test_the_canonical_form_is_read_back(spec: Spec) -> None:
    assert parse_spec(canonical(spec)) == spec
    assert canonical(parse_spec(canonical(spec))) == canonical(spec)


@given(OPTIONS)
def test_a_label_holds_all_that_tells_options_from_the_defaults(options: Options) -> None:
    label = options_label("x", vars(options), vars(Options()))
    assert build_options(Options, parse_spec(label).options, "x") == options


@given(st.text(st.sampled_from("ab[]=,+ 1"), max_size=14))
def test_any_text_is_parsed_or_refused_for_people(text: str) -> None:
    try:
        specs = parse_specs(text)
    except UserError:
        return
    assert parse_specs(",".join(map(canonical, specs))) == specs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("das[skip=4", r"character 4: this '\[' is never closed"),
        ("full,das]", r"character 9: '\]' without a '\['"),
        ("das[a=[1]]", r"character 7: '\[' inside of brackets"),
        ("das[skip=4]lora", "character 1: a comma is missing before 'lora'"),
        ("das[skip=4][r=2]", "a comma is missing before"),
        ("das[skip]", "an option is written name=value, not 'skip'"),
        ("das[skip=4,]", "an option is written name=value, not ''"),
        ("das[skip=4,skip=5]", "option 'skip' of das is there twice"),
        ("full,", "character 6: a name is missing"),
        ("", "character 1: a name is missing"),
        ("fu ll", "'fu ll' cannot be a name"),
        ("lora[r=8],full, lora[ r = 8 ]", r"lora\[r=8\] is there twice"),
    ],
)
def test_what_is_malformed_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_specs(text)


def test_the_same_method_with_other_options_is_another_spec() -> None:
    assert len(parse_specs("lora,lora[r=8],lora[r=2]")) == 3


def test_values_take_their_fields_types() -> None:
    text = (
        "x[r=8,alpha=1e-3,merge=false,name=none,variant=published,reward=none,blocks=a+b,sizes=3,betas=0.5+1]"
    )
    assert build_options(Options, parse_spec(text).options, "x") == Options(
        8, 1e-3, False, "none", "published", None, ("a", "b"), (3,), (0.5, 1.0)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rr": "8"}, "lora: no option 'rr'. Did you mean 'r'?"),
        ({"r": "8.5"}, "lora: r has to be a whole number, not '8.5'."),
        ({"r": "none"}, "lora: r has to be a whole number, not 'none'."),
        ({"alpha": "big"}, "lora: alpha has to be a number or none, not 'big'."),
        ({"alpha": "nan"}, "lora: alpha has to be a finite number or none, not 'nan'."),
        ({"merge": "1"}, "lora: merge has to be true or false, not '1'."),
        ({"variant": "loud"}, "lora: variant has to be one of sound, published, not 'loud'."),
        ({"sizes": "1+x"}, "lora: sizes has to be values joined by '+', each a whole number, not '1+x'."),
        ({"betas": "1"}, "lora: betas has to be 2 values joined by '+', not '1'."),
        ({"r": "0"}, "lora: r must be at least 1"),
    ],
)
def test_an_option_that_does_not_fit_says_what_was_expected(options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as raised:
        build_options(Options, options, "lora")
    assert str(raised.value) == message


def test_an_option_without_default_has_to_be_given() -> None:
    @dataclass(frozen=True)
    class Needs:
        path: str

    with pytest.raises(UserError, match="x: path has to be given"):
        build_options(Needs, {}, "x")


def test_labels_leave_out_what_is_default() -> None:
    defaults = vars(Options())
    assert options_label("lora", {**defaults, "merge": False}, defaults) == "lora[merge=false]"
    assert options_label("lora", defaults, defaults) == "lora"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "none"), (True, "true"), ((3, 7), "3+7"), ([], ""), (0.1, "0.1"), ("auto", "auto")],
)
def test_values_are_written_as_they_are_read(value: object, text: str) -> None:
    assert format_value(value) == text


def test_untyped_values_become_the_simplest_type_that_fits() -> None:
    assert [guess_value(text) for text in ("16", "0.5", "true", "gelu", "1e-3")] == [
        16,
        0.5,
        True,
        "gelu",
        1e-3,
    ]


def experiment(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "exp.toml"
    path.write_text(text)
    return path


def test_an_experiment_file_ends_in_the_same_specs(tmp_path: Path) -> None:
    path = experiment(
        tmp_path,
        """
        [run]
        methods = ["full", "das[skip=4]", "lora"]
        tasks = "vqa"
        backbone = "vilt-mini"
        seeds = [0, 1]
        learning_rate = 1
        [methods.lora]
        r = 8
        targets = ["query", "value"]
        alpha = 0.5
        merge = true
        [methods.das]
        skip = 2
        sets = 3
        """,
    )
    found = read_experiment(path)
    assert found == {
        "methods": parse_specs("full,das[skip=4,sets=3],lora[r=8,targets=query+value,alpha=0.5,merge=true]"),
        "tasks": [Spec("vqa")],
        "backbone": [Spec("vilt-mini")],
        "seeds": [0, 1],
        "learning_rate": 1.0,
    }
    assert type(found["learning_rate"]) is float


def test_without_a_list_of_methods_the_tables_name_them(tmp_path: Path) -> None:
    path = experiment(tmp_path, "[methods.lora]\nr = 8\n[methods.full]\n[tasks.vqa]\nlimit_train = 10\n")
    assert read_experiment(path) == {
        "methods": parse_specs("lora[r=8],full"),
        "tasks": [Spec("vqa", {"limit_train": "10"})],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[run]\nmethods = [\n", "not valid TOML: .*(line|end of document)"),
        ("[run]\nseeds = = 1\n", "line 2"),
        ("[rnu]\n", "unknown key 'rnu'. Did you mean 'run'"),
        ("run = 1\n", r"'run' has to be a table, written \[run\]"),
        ("[run]\nepoch = 1\n", r"\[run\]: unknown key 'epoch'. Did you mean 'epochs'"),
        ("[run]\nepochs = '5'\n", r"\[run\]: epochs has to be a whole number, not '5'"),
        ("[run]\nepochs = true\n", "epochs has to be a whole number, not True"),
        ("[run]\nseeds = [0, 'x']\n", "seeds has to be a whole number, not 'x'"),
        ("[run]\nmethods = 3\n", "methods has to be a string or a list of strings"),
        ("[run]\nmethods = 'das[skip'\n", r"\[run\]: methods: .* is never closed"),
        (
            "[run]\nmethods = 'das'\n[methods.dsa]\nskip = 1\n",
            r"\[methods.dsa\]: .* name it. Did you mean 'das'",
        ),
        ("[methods]\nlora = 3\n", r"\[methods.lora\] has to be a table"),
        ("[methods.lora]\nr = {a = 1}\n", "cannot be an option"),
        ("[methods.lora]\ntargets = 'a,b'\n", "cannot be an option"),
        ("[run]\nmethods = 'lora,lora[r=8]'\n[methods.lora]\nr = 8\n", r"lora\[r=8\] would run twice"),
    ],
)
def test_an_experiment_file_that_is_wrong_says_where(tmp_path: Path, text: str, message: str) -> None:
    path = experiment(tmp_path, text)
    with pytest.raises(UserError, match=message) as raised:
        read_experiment(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_a_missing_experiment_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_experiment(tmp_path / "none.toml")
