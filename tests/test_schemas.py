"""Which JSON Schemas are accepted, and which finished texts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from xnai.agents.inference.errors import AnswerInvalid, RuleInvalid
from xnai.agents.inference.schemas import (
    ANNOTATIONS,
    KEYWORDS,
    check_answer,
    grammar_rule,
    regex_rule,
    schema_rule,
)

UNSUPPORTED = {
    *("not", "if", "then", "else", "uniqueItems", "contains", "minContains", "maxContains", "propertyNames"),
    *(
        "patternProperties",
        "dependentRequired",
        "dependentSchemas",
        "unevaluatedItems",
        "$anchor",
        "$dynamicRef",
    ),
    *("unevaluatedProperties", "contentEncoding", "nullable", "x-guidance", "minimun"),
}
TREE = {"type": "object", "properties": {"c": {"type": "array", "items": {"$ref": "#"}}}}


@pytest.mark.parametrize("keyword", sorted(UNSUPPORTED))
def test_a_keyword_outside_the_subset_is_refused_by_name_and_place(keyword: str) -> None:
    schema = {"type": "object", "properties": {"a": {"items": {keyword: True}}}}
    with pytest.raises(RuleInvalid) as caught:
        schema_rule(schema)
    assert str(caught.value) == f"#/properties/a/items: the keyword {keyword!r} is not supported"


def test_what_says_nothing_about_values_is_accepted() -> None:
    schema = {"$id": "https://example.org/x", "type": "integer"} | dict.fromkeys(ANNOTATIONS, "x")
    assert json.loads(schema_rule(schema).text) == schema


def test_the_documentation_lists_every_keyword() -> None:
    page = (Path(__file__).parent.parent / "docs" / "structured-output.md").read_text()
    listed = set(re.findall(r"`([^`\n]+)`", page))
    assert (ANNOTATIONS | KEYWORDS.keys()) - listed == set()


def test_names_of_properties_are_no_keywords() -> None:
    schema = {
        "type": "object",
        "properties": {"not": {"type": "null"}, "if": True},
        "$defs": {"contains": {}},
    }
    assert json.loads(schema_rule(schema).text) == schema


@pytest.mark.parametrize("keyword", sorted(KEYWORDS))
def test_a_keyword_with_a_value_of_the_wrong_kind_is_refused_with_its_place(keyword: str) -> None:
    wrong = float("inf") if keyword == "const" else None
    with pytest.raises(RuleInvalid):
        schema_rule({"items": {keyword: wrong}})


@pytest.mark.parametrize(
    ("schema", "sentence"),
    [
        (False, "no value is valid"),
        ({"$ref": "#/$defs/x"}, "no schema at #/\\$defs/x"),
        ({"$ref": "https://example.org/x"}, "a place in this schema"),
        ({"$ref": "#/default", "default": {}}, "no schema at"),
        ({"const": 2**60}, "2\\^53"),
        ({"enum": []}, "a list of values"),
        ({"format": "regex"}, "one of date"),
        ({"pattern": "a" * 20_000}, "at most 10000"),
        ({"items": 1}, "must be a schema"),
        ({"properties": {"a": 1}}, "an object or a boolean"),
        ({"const": "\ud800"}, "no JSON"),
        ({"const": float("nan")}, "no JSON"),
        ({"default": object()}, "no JSON"),
        ({"description": "x" * 600_000}, "at most 500000"),
        ({"anyOf": [{}] * 10_001}, "more than 10000 schemas"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_schema_that_is_not_right_is_refused_in_a_sentence(schema: Any, sentence: str) -> None:
    with pytest.raises(RuleInvalid, match=sentence):
        schema_rule(schema)


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize("levels", [119, 120, 900, 100_000])
def test_a_schema_nested_too_deep_is_refused(levels: int) -> None:
    if levels < 120:
        assert schema_rule(nested(levels)).text
    else:
        with pytest.raises(RuleInvalid):
            schema_rule(nested(levels))


def test_references_that_lead_too_deep_are_refused() -> None:
    links = {f"d{index}": {"$ref": f"#/$defs/d{index + 1}"} for index in range(2500)}
    with pytest.raises(RuleInvalid, match="too deep"):
        schema_rule({"$defs": links | {"d2500": {}}, "$ref": "#/$defs/d0"})


def test_recursion_and_escaped_places_are_accepted() -> None:
    assert schema_rule(TREE).text
    assert schema_rule({"$defs": {"a/b~c": {}}, "$ref": "#/$defs/a~1b~0c"}).text
    assert schema_rule({"$defs": {"a b": {}}, "$ref": "#/$defs/a%20b"}).text


def test_lengths_that_are_open_get_a_bound_that_the_schema_allows() -> None:
    schema = {
        "type": "object",
        "properties": {
            "open": {"type": "string"},
            "long": {"type": ["string", "null"], "minLength": 300},
            "closed": {"type": "string", "maxLength": 9},
            "date": {"type": "string", "format": "date"},
            "list": {"type": "array", "items": {"type": "string"}},
        },
    }
    bounded = json.loads(schema_rule(schema, max_tokens=100).text)["properties"]
    assert bounded["open"]["maxLength"] == 200
    assert bounded["long"]["maxLength"] == 300
    assert bounded["closed"]["maxLength"] == 9
    assert bounded["date"] == {"type": "string", "format": "date"}
    assert bounded["list"] == {
        "type": "array",
        "items": {"type": "string", "maxLength": 200},
        "maxItems": 100,
    }
    assert json.loads(schema_rule(schema).text) == schema


def test_properties_keep_their_order() -> None:
    assert list(json.loads(schema_rule({"properties": {"z": {}, "a": {}}}).text)["properties"]) == ["z", "a"]


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "object", "required": ["a"]}, '{"a": 1.5}', {"a": 1.5}),
        (True, "[null]", [None]),
        ({"type": "string", "pattern": "b"}, '"abc\\u007f\\n/\\u2028🙂"', "abc\x7f\n/\u2028🙂"),
        ({"type": "string", "pattern": "^(a+)+$"}, json.dumps("a" * 5000), "a" * 5000),
        (TREE, '{"c": [{"c": []}]}', {"c": [{"c": []}]}),
        ({"$id": "https://example.org/x", "$ref": "#/$defs/x", "$defs": {"x": {"const": 1}}}, "1", 1),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_finished_text_that_is_right_becomes_its_value(schema: Any, text: str, value: Any) -> None:
    assert check_answer(schema, text) == value


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "object"}, '{"a": 1'),
        ({}, ""),
        ({}, "NaN"),
        ({}, "1e999"),
        ({}, '{} "more"'),
        ({}, "1" * 5000),
        ({}, "[" * 100_000),
        (TREE, '{"c": [' * 300 + "]}" * 300),
        ({"type": "integer", "minimum": 3}, "2"),
        ({"type": "string", "format": "date"}, '"2026-02-31"'),
        ({"type": "string", "pattern": "^\\d$"}, '"٣"'),
        ({"type": "string", "pattern": "^(a+)+$"}, json.dumps("a" * 5000 + "!")),
        ({"$ref": "#"}, "1"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_finished_text_that_is_wrong_is_an_error(schema: Any, text: str) -> None:
    with pytest.raises(AnswerInvalid):
        check_answer(schema, text)


def test_a_schema_that_takes_exponentially_long_to_check_is_given_up() -> None:
    schema = {"anyOf": [{"items": {"$ref": "#"}, "minItems": 2}, {"items": {"$ref": "#"}}], "type": "array"}
    with pytest.raises(AnswerInvalid, match="too long"):
        check_answer(schema, "[" * 60 + "]" * 60)


def test_patterns_and_grammars_of_any_length_are_refused() -> None:
    assert regex_rule("a").kind == "regex"
    assert grammar_rule('root ::= "a"').kind == "grammar"
    with pytest.raises(RuleInvalid, match="at most 10000"):
        regex_rule("a" * 10_001)
    with pytest.raises(RuleInvalid, match="at most 100000"):
        grammar_rule("a" * 100_001)
