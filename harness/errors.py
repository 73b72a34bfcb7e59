"""Errors that the user can fix, and functions for messages."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable
from difflib import get_close_matches

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class UserError(Exception):
    """An error that the user can fix: the message says what is wrong, where, and what to do.

    The command line prints it on one line and exits with status 2. Control characters in the message, which may
    quote a file, are written as escapes.
    """

    def __init__(self, message: str) -> None:
        super().__init__(escaped(message))


def escaped(text: str) -> str:
    r"""`text` on one line: control characters and lone surrogates as escapes, such as `\n`."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`" Did you mean 'lora'?"` if a known word is close to `word`, else the list of known words."""
    choices = sorted(known)
    folded = {each.casefold(): each for each in choices}
    close = get_close_matches(word.casefold(), folded, n=1, cutoff=0.6)
    if close:
        return f" Did you mean '{folded[close[0]]}'?"
    return f" Known: {', '.join(choices)}." if choices else ""


def counted(number: int, noun: str) -> str:
    """A number with its noun in singular or plural: `1 cell`, `2 cells`, `1,200 examples`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def one_line(error: BaseException) -> str:
    """Type and message of an exception as one line, for records and progress lines."""
    return escaped(traceback.format_exception_only(error)[-1].strip().splitlines()[0])
