"""Fuzzing: many small random inputs, of which each must be read or end in one line for the user."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from harness.errors import UserError, escaped

Test = TypeVar("Test", bound=Callable[..., None])

FACTOR = int(os.environ.get("HARNESS_FUZZ", "1"))
"""How many times as many cases are tried; above 1 they are other ones each time."""


def cases(number: int) -> Callable[[Test], Test]:
    """A test with `number` cases, the same in every run."""
    return settings(  # type: ignore[return-value]
        max_examples=number * FACTOR,
        derandomize=FACTOR == 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def at_most_a_user_error() -> Iterator[None]:
    """Within this context nothing but a `UserError` of one line may be raised."""
    try:
        yield
    except UserError as error:
        message = str(error)
        assert message
        assert escaped(message) == message, message
        assert "weights_only" not in message


@st.composite
def damaged(draw: Any, content: bytes, most: int = 4) -> bytes:
    """`content` with a few parts removed, repeated, replaced or inserted."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, most))):
        start = draw(st.integers(0, len(found)))
        stop = min(len(found), start + draw(st.integers(0, 12)))
        match draw(st.sampled_from(("remove", "repeat", "replace", "insert", "cut"))):
            case "remove":
                del found[start:stop]
            case "repeat":
                found[stop:stop] = found[start:stop] * draw(st.integers(1, 3))
            case "replace":
                found[start:stop] = draw(st.binary(max_size=12))
            case "insert":
                found[start:start] = draw(st.sampled_from(TOKENS))
            case "cut":
                del found[start:]
    return bytes(found)


TOKENS = (
    *(
        b"\x00",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\r",
        b"\n",
        b"\xe2\x80\xa8",
        b'"',
        b"{",
        b"[",
        b"]",
        b"}",
        b",",
        b":",
    ),
    *(
        b"NaN",
        b"Infinity",
        b"-1",
        b"1e999",
        b"9" * 5000,
        b"null",
        b"true",
        b"[" * 3000,
        rb"\ud800",
        b"\x1f\x8b",
    ),
    *("ä".encode(), "😀".encode(), b"\xed\xa0\x80", b"%", b"\\", b"../../x", b"=", b"#"),
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(("", "../../x", "nan", "\ud800", "\n", "x" * 300)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def changed_json(draw: Any, content: Any, most: int = 3) -> Any:
    """A JSON value with a few values, at any depth, replaced or left out."""
    for _ in range(draw(st.integers(1, most))):
        content = _change(draw, content)
    return content


def _change(draw: Any, value: Any) -> Any:
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(value)))
        if not draw(st.integers(0, 5)):
            return {name: inner for name, inner in value.items() if name != key}
        return {**value, key: _change(draw, value[key])}
    if isinstance(value, list) and value and draw(st.integers(0, 9)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], _change(draw, value[place]), *value[place + 1 :]]
    return draw(JSON)
