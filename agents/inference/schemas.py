"""What an answer must look like: checked when it is asked for, and again when the text is there.

The subset of JSON Schema (draft 2020-12) that a model can be held to is `KEYWORDS` and `ANNOTATIONS`. Any
other keyword is refused by its name and place: ignored, it would let through what the caller wants kept out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any, NoReturn
from urllib.parse import unquote

from xnai.agents.inference.errors import AnswerInvalid, RuleInvalid
from xnai.agents.inference.frames import Rule

Schema = dict[str, Any] | bool

LONGEST_SCHEMA = 500_000
"""Characters of a JSON Schema as text."""

LONGEST_PATTERN = 10_000
"""Characters of a regular expression, and of a grammar ten times as many."""

_MOST_NODES = 10_000  # schemas in a schema
_NESTING = 120  # objects and lists in one another; llguidance reads 127
_LEVELS = 2_000  # of a schema and of all that is referred to: the engine's stack is made for this many
_LARGEST_INTEGER = 2**53  # beyond, a JSON number is rounded

_TYPES = {"null", "boolean", "integer", "number", "string", "array", "object"}
_FORMATS = {"date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"}


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and not (isinstance(value, int) and abs(value) > _LARGEST_INTEGER)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST_INTEGER


def _is_type(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name in _TYPES for name in names)


def _is_plain(value: Any) -> bool:
    """JSON that comes back as it was written."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, bool | str) or _is_number(value)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


_NUMBER = (_is_number, "a finite number, an integer below 2^53")
_COUNT = (_is_count, "an integer from 0 on")
_SCHEMA = (lambda value: isinstance(value, dict | bool), "a schema")
_SCHEMAS = (lambda value: isinstance(value, list) and bool(value), "a list of schemas")
_NAMED = (lambda value: isinstance(value, dict), "an object of schemas")

KEYWORDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "type": (_is_type, "one or several of " + ", ".join(sorted(_TYPES))),
    "const": (_is_plain, "a value without integers from 2^53 on"),
    "enum": (
        lambda value: isinstance(value, list) and bool(value) and _is_plain(value),
        "a list of values without integers from 2^53 on",
    ),
    "minimum": _NUMBER,
    "maximum": _NUMBER,
    "exclusiveMinimum": _NUMBER,
    "exclusiveMaximum": _NUMBER,
    "multipleOf": (lambda value: _is_number(value) and value > 0, "a number above 0"),
    "minLength": _COUNT,
    "maxLength": _COUNT,
    "pattern": (
        lambda value: isinstance(value, str) and len(value) <= LONGEST_PATTERN,
        f"a regular expression of at most {LONGEST_PATTERN} characters",
    ),
    "format": (
        lambda value: isinstance(value, str) and value in _FORMATS,
        "one of " + ", ".join(sorted(_FORMATS)),
    ),
    "items": _SCHEMA,
    "prefixItems": _SCHEMAS,
    "minItems": _COUNT,
    "maxItems": _COUNT,
    "properties": _NAMED,
    "required": (_is_names, "a list of names"),
    "additionalProperties": _SCHEMA,
    "minProperties": _COUNT,
    "maxProperties": _COUNT,
    "anyOf": _SCHEMAS,
    "oneOf": _SCHEMAS,
    "allOf": _SCHEMAS,
    "$ref": (
        lambda value: isinstance(value, str) and value.startswith("#"),
        "a place in this schema: '#/$defs/…'",
    ),
    "$defs": _NAMED,
    "definitions": _NAMED,
}
"""What a model can be held to, and what a keyword's value must be."""

ANNOTATIONS = {
    *("$comment", "$schema", "title", "description", "default", "examples", "deprecated", "readOnly"),
    *("writeOnly", "discriminator"),
}
"""What says nothing about which values are valid. `$id` is one of them at the root, and refused elsewhere."""


def schema_rule(schema: Schema, *, max_tokens: int | None = None) -> Rule:
    """The rule by which the engine keeps an answer to a JSON Schema. Properties come in the schema's order.

    With `max_tokens`, strings and arrays whose length the schema leaves open get a bound, twice as many
    characters and as many items, so that a model that repeats itself still comes to an end. Strings with a
    pattern or a format, and values of any type, get none.

    Raises RuleInvalid for a schema that is not valid, not supported, or too large.
    """
    text = _text(schema)
    _Reader(schema).read()
    if max_tokens is not None:
        text = json.dumps(_bounded(schema, max_tokens), ensure_ascii=False)
    return Rule("json_schema", "{}" if schema is True else text)


def regex_rule(regex: str) -> Rule:
    """The rule by which the whole answer matches a regular expression. Raises RuleInvalid for a long one."""
    if len(regex) > LONGEST_PATTERN:
        raise RuleInvalid(
            f"a regular expression of {len(regex)} characters: at most {LONGEST_PATTERN} are allowed"
        )
    return Rule("regex", regex)


def grammar_rule(grammar: str) -> Rule:
    """The rule by which the answer is a text of a grammar in GBNF. Raises RuleInvalid for a long one."""
    if len(grammar) > 10 * LONGEST_PATTERN:
        raise RuleInvalid(
            f"a grammar of {len(grammar)} characters: at most {10 * LONGEST_PATTERN} are allowed"
        )
    return Rule("grammar", grammar)


def check_answer(schema: Schema, text: str) -> Any:
    """The value that a finished text says. Raises AnswerInvalid if it is no JSON, or breaks the schema.

    The schema is one that `schema_rule` accepted.
    """
    from xnai.agents.inference.validating import validator  # here: it brings 7 MB, and few ask for schemas

    try:
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite)
        fault = next(validator(schema).iter_errors(value), None)
    except (ValueError, RecursionError) as error:
        raise AnswerInvalid(f"the answer is no JSON that can be checked: {error}") from error
    if fault is not None:
        place = "".join(f"[{part!r}]" for part in fault.absolute_path) or "the whole"
        raise AnswerInvalid(f"the answer breaks the schema: {place}: {fault.message[:200]}")
    return value


class _Reader:
    """Walks through a schema once, and refuses what is not in the subset."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._depths: dict[str, int] = {}  # of each schema, by its place
        self._references: dict[str, str] = {}  # where each place is referred to from

    def read(self) -> None:
        depth = self._visit(self._schema, "#")
        for target, place in self._references.items():
            if target not in self._depths:
                raise RuleInvalid(f"{place}/$ref: there is no schema at {target}")
        if depth + sum(self._depths[target] for target in self._references) > _LEVELS:
            raise RuleInvalid(f"the schema is too deep: {_LEVELS} levels of all its definitions are allowed")

    def _visit(self, schema: Any, place: str) -> int:
        """How many schemas are within one another here."""
        if not isinstance(schema, dict | bool):
            raise RuleInvalid(f"{place}: a schema is an object or a boolean")
        if len(self._depths) >= _MOST_NODES:
            raise RuleInvalid(f"the schema holds more than {_MOST_NODES} schemas")
        self._depths[place] = 1
        if isinstance(schema, dict):
            for keyword, value in schema.items():
                self._check(keyword, value, place)
            inner = [self._visit(part, f"{place}/{step}") for step, part in _parts(schema)]
            self._depths[place] = 1 + max(inner, default=0)
        return self._depths[place]

    def _check(self, keyword: str, value: Any, place: str) -> None:
        if keyword in ANNOTATIONS or (keyword == "$id" and place == "#"):
            return
        if keyword not in KEYWORDS:
            raise RuleInvalid(f"{place}: the keyword {keyword!r} is not supported")
        accepts, wanted = KEYWORDS[keyword]
        if not accepts(value):
            raise RuleInvalid(f"{place}/{keyword}: must be {wanted}")
        if keyword == "$ref":
            self._references.setdefault(unquote(value).rstrip("/"), place)


def _parts(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The schemas directly in a schema, with the way there."""
    for keyword, value in schema.items():
        expected = KEYWORDS.get(keyword)
        if expected is _SCHEMA:
            yield keyword, value
        elif expected is _SCHEMAS:
            yield from ((f"{keyword}/{index}", part) for index, part in enumerate(value))
        elif expected is _NAMED:
            names = ((name.replace("~", "~0").replace("/", "~1"), part) for name, part in value.items())
            yield from ((f"{keyword}/{name}", part) for name, part in names)


def _text(schema: Schema) -> str:
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise RuleInvalid(f"the schema is no JSON: {error}") from error
    if len(text) > LONGEST_SCHEMA:
        raise RuleInvalid(f"a schema of {len(text)} characters: at most {LONGEST_SCHEMA} are allowed")
    if _nesting(schema) > _NESTING:
        raise RuleInvalid(f"the schema is nested more than {_NESTING} deep")
    if schema is False:
        raise RuleInvalid("the schema is false: no value is valid")
    return text


def _nesting(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        inner = (
            item.values() if isinstance(item, dict) else item
            for item in level
            if isinstance(item, dict | list)
        )
        level = [part for parts in inner for part in parts]
    return depth


def _bounded(schema: Any, tokens: int) -> Any:
    """A copy in which strings and arrays end."""
    if not isinstance(schema, dict):
        return schema
    copy = dict(schema)
    for keyword, value in schema.items():
        expected = KEYWORDS.get(keyword)
        if expected is _SCHEMA:
            copy[keyword] = _bounded(value, tokens)
        elif expected is _SCHEMAS:
            copy[keyword] = [_bounded(part, tokens) for part in value]
        elif expected is _NAMED:
            copy[keyword] = {name: _bounded(part, tokens) for name, part in value.items()}
    kinds = schema.get("type", [])
    if "string" in kinds and not schema.keys() & {"maxLength", "pattern", "format", "enum", "const", "$ref"}:
        copy["maxLength"] = max(2 * tokens, schema.get("minLength", 0))
    if "array" in kinds and not schema.keys() & {"maxItems", "enum", "const", "$ref"}:
        copy["maxItems"] = max(tokens, schema.get("minItems", 0), len(schema.get("prefixItems", [])))
    return copy


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits} is out of range")
    return number
