"""Settings by pattern: "pattern=value; pattern=value", the first pattern that matches a name counts."""

import re
from collections.abc import Callable
from typing import Any

from atalaia.errors import UserError


def parse(field: str, text: str, value: Callable[[str], Any], expected: str) -> list[tuple[str, Any]]:
    """[(regular expression, value)] of a config's field.

    Args:
      field: its name, for messages; text: what it holds.
      value: makes a value of its text, ValueError where it cannot.
      expected: what a value is called and may be, for messages.

    Raises:
      UserError: a part is not "pattern=value", or its pattern is no regular expression.
    """
    rules = []
    for item in filter(None, (part.strip() for part in text.split(";"))):
        pattern, _, right = item.rpartition("=")
        try:
            found = value(right.strip())
        except ValueError:
            pattern = ""
        if not pattern:
            raise UserError(f"{field}: {item!r} is not pattern={expected}")
        rules.append((compile_pattern(field, pattern.strip()), found))
    return rules


def compile_pattern(field: str, pattern: str) -> str:
    """The pattern itself, if it is a regular expression.

    Raises:
      UserError: it is none.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"{field}: {pattern!r} is no regular expression ({error})") from None
    return pattern
