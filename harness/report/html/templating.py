"""The report's templates. They escape every text that is not markup already."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def fill(template: str, **values: Any) -> Markup:
    """Fill a template of `templates/`. The result is markup, so other templates do not escape it again.

    Raises:
        jinja2.UndefinedError: the template uses a value that is missing.
    """
    return Markup(_environment().get_template(template).render(values))  # the template has escaped the values


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("harness.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
