"""The templates of the page, which escape every text they are given unless it is markup already."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def fill(template: str, **values: Any) -> Markup:
    """A template of `templates/` with its values. What comes back is markup, so another template takes it as it is.

    Raises:
        jinja2.UndefinedError: the template names a value that it was not given.
    """
    return Markup(_environment().get_template(template).render(values))  # the template has escaped its values


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("harness.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
