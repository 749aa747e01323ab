"""Whether a value keeps to a JSON Schema: `jsonschema`, bounded in what it may do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend
from llguidance import LLMatcher, LLTokenizer

_FUEL = 100_000  # keywords looked at to validate one text; a schema can be made to take exponentially many


def validator(schema: dict[str, Any] | bool) -> Any:
    """Of `jsonschema`, for one text. Its checks raise ValueError if they take too long or cannot be made."""
    left = _FUEL

    def counted(check: Any) -> Any:
        def look(validator: Any, value: Any, instance: Any, within: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise ValueError("it takes too long")
            return check(validator, value, instance, within)

        return look

    checks = dict(Draft202012Validator.VALIDATORS) | {"pattern": _pattern}
    extended: Any = extend  # of a library without types there
    kind = extended(Draft202012Validator, {name: counted(check) for name, check in checks.items()})
    if isinstance(schema, dict):
        schema = {keyword: value for keyword, value in schema.items() if keyword not in ("$id", "$schema")}
    return kind(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


def _pattern(_: Any, pattern: str, instance: Any, __: Any) -> Iterator[ValidationError]:
    """Python's own expressions can take exponentially long, and mean other things in places."""
    if isinstance(instance, str) and not _matches(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _matches(pattern: str, text: str) -> bool:
    # What the engine held the model to, letter by letter, in the one way in which llguidance spells a string.
    written = json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f").encode()
    matcher = _matcher(pattern).deep_copy()
    return matcher.try_consume_tokens(list(written)) == len(written) and bool(matcher.is_accepting())


@lru_cache(maxsize=64)
def _matcher(pattern: str) -> LLMatcher:
    schema = {"type": "string", "pattern": pattern}
    matcher = LLMatcher(_letters(), LLMatcher.grammar_from_json_schema(schema), log_level=0)
    if matcher.is_error():
        raise ValueError(f"the pattern {pattern!r} is not supported")
    return matcher


@lru_cache(maxsize=1)
def _letters() -> LLTokenizer:
    return LLTokenizer("byte")
