"""Specs: the inline grammar, typed options, labels, and errors that name the position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


NAMES = st.from_regex(r"[A-Za-z0-9_.:-]{1,12}\+{0,2}", fullmatch=True)
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
def test_canonical_form_is_parsed_back(spec: Spec) -> None:
    assert parse_spec(canonical(spec)) == spec
    assert canonical(parse_spec(canonical(spec))) == canonical(spec)


@given(OPTIONS)
def test_label_contains_all_options_that_differ_from_defaults(options: Options) -> None:
    label = options_label("x", vars(options), vars(Options()))
    assert build_options(Options, parse_spec(label).options, "x") == options


@given(st.text(st.sampled_from("ab[]=,+ 1"), max_size=14))
def test_arbitrary_text_is_parsed_or_refused_with_a_user_error(text: str) -> None:
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
        ("das[a=[1]]", r"character 7: '\[' inside brackets"),
        ("das[skip=4]lora", "character 1: a comma is missing before 'lora'"),
        ("das[skip=4][r=2]", "a comma is missing before"),
        ("das[skip]", "an option is written name=value, not 'skip'"),
        ("das[skip=4,]", "an option is written name=value, not ''"),
        ("das[skip=4,skip=5]", "option 'skip' of das appears twice"),
        ("full,", "character 6: a name is missing"),
        ("", "character 1: a name is missing"),
        ("fu ll", "'fu ll' cannot be a name"),
        ("lora[r=8],full, lora[ r = 8 ]", r"lora\[r=8\] appears twice"),
    ],
)
def test_malformed_specs_are_refused_with_the_position(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_specs(text)


def test_same_method_with_other_options_is_another_spec() -> None:
    assert len(parse_specs("lora,lora[r=8],lora[r=2]")) == 3


def test_values_are_converted_to_their_fields_types() -> None:
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
        ({"r": "8.5"}, "lora: r must be a whole number, not '8.5'."),
        ({"r": "none"}, "lora: r must be a whole number, not 'none'."),
        ({"alpha": "big"}, "lora: alpha must be a number or none, not 'big'."),
        ({"alpha": "nan"}, "lora: alpha must be a finite number or none, not 'nan'."),
        ({"merge": "1"}, "lora: merge must be true or false, not '1'."),
        ({"variant": "loud"}, "lora: variant must be one of sound, published, not 'loud'."),
        ({"sizes": "1+x"}, "lora: sizes must be values joined by '+', each a whole number, not '1+x'."),
        ({"betas": "1"}, "lora: betas must be 2 values joined by '+', not '1'."),
        ({"r": "0"}, "lora: r must be at least 1"),
    ],
)
def test_an_option_that_does_not_fit_says_what_was_expected(options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as raised:
        build_options(Options, options, "lora")
    assert str(raised.value) == message


def test_option_without_default_is_required() -> None:
    @dataclass(frozen=True)
    class Needs:
        path: str

    with pytest.raises(UserError, match="x: path must be given"):
        build_options(Needs, {}, "x")


def test_labels_omit_defaults() -> None:
    defaults = vars(Options())
    assert options_label("lora", {**defaults, "merge": False}, defaults) == "lora[merge=false]"
    assert options_label("lora", defaults, defaults) == "lora"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "none"), (True, "true"), ((3, 7), "3+7"), ([], ""), (0.1, "0.1"), ("auto", "auto")],
)
def test_formatted_values_are_parsed_back(value: object, text: str) -> None:
    assert format_value(value) == text


def test_untyped_values_become_the_simplest_type_that_fits() -> None:
    assert [guess_value(text) for text in ("16", "0.5", "true", "gelu", "1e-3")] == [
        16,
        0.5,
        True,
        "gelu",
        1e-3,
    ]
