"""Whatever is given as a flag, a keyword or a spec, it is taken or refused on one line."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from harness.config.declared import SETTINGS
from harness.config.sources import build_settings, from_flags, from_keywords
from harness.registry import build_method, build_task
from harness.specs import canonical, parse_specs
from tests.support.fuzzing import JSON, at_most_a_user_error, cases

WORDS = st.sampled_from(
    (
        *(
            "nan",
            "inf",
            "-inf",
            "-1",
            "0",
            "1e999",
            "²x²",
            "0x0",
            "99999999999x1",
            "9" * 5000,
            "none",
            "",
            " ",
        ),
        *(
            "[]",
            "[-1]",
            "0,0",
            "1,,2",
            "~nobody/x",
            "a\x00b",
            "\udcff",
            "lora",
            "lora[r=8]",
            "vqa",
            "all",
            "true",
        ),
        *("16-mixed", "cuda", "384x576", "1", "0.5", "0,1", "best"),
    )
)
KEYS = st.sampled_from(list(SETTINGS))


@cases(400)
@given(values=st.dictionaries(KEYS, WORDS | st.text(max_size=12), min_size=1, max_size=3))
def test_flags(values: dict[str, str]) -> None:
    with at_most_a_user_error():
        build_settings(from_flags({"methods": "lora", "tasks": "vqa", **values}))


@cases(300)
@given(
    values=st.dictionaries(
        KEYS, JSON | WORDS | st.builds(np.float32, st.floats(width=32)), min_size=1, max_size=3
    )
)
def test_keywords(values: dict[str, Any]) -> None:
    with at_most_a_user_error():
        build_settings(from_keywords({"methods": "lora", "tasks": "vqa", **values}))


NAMES = st.sampled_from(("lora", "das", "adapter", "parallel", "vqa", "nlvr2", "tome", "bitfit", "x"))
OPTIONS = st.sampled_from(
    ("r", "alpha", "skip", "bottleneck", "targets", "limit_train", "seed", "answers", "ratio")
)


@st.composite
def specs(draw: Any) -> str:
    options = draw(st.dictionaries(OPTIONS, WORDS | st.text(max_size=5), max_size=2))
    inside = ",".join(f"{key}={value}" for key, value in options.items())
    return f"{draw(NAMES)}[{inside}]" if inside else draw(st.text("lora[]=,8 das+-.", max_size=12))


@cases(400)
@given(text=specs())
def test_specs(text: str) -> None:
    with at_most_a_user_error():
        found = parse_specs(text)
        assert parse_specs(",".join(map(canonical, found))) == found
        for spec in found:
            with at_most_a_user_error():
                build_method(spec)
            with at_most_a_user_error():
                build_task(spec)
