"""What a model may write under a rule, with a real vocabulary and logits at random."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import pytest
from gguf_models import WORDS, write_model
from numpy.typing import NDArray

from xnai.agents.inference.engine.grammars import to_lark
from xnai.agents.inference.engine.rules import Matcher, Rulebook
from xnai.agents.inference.errors import RuleInvalid
from xnai.agents.inference.frames import Rule
from xnai.agents.inference.schemas import check_answer, schema_rule

ENDS = (2, 4)  # of the vocabulary of gguf_models
CLOSING = [WORDS.index(word) for word in ('"', "}", "]")]

NODE = {
    "type": "object",
    "properties": {
        "value": {"type": "integer"},
        "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
    },
    "required": ["value", "next"],
    "additionalProperties": False,
}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "born": {"type": "string", "format": "date"},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "born", "tags"],
    "additionalProperties": False,
}
SCHEMAS: list[Any] = [
    PERSON,
    {"type": "array", "items": PERSON, "minItems": 1, "maxItems": 2},
    {"$defs": {"node": NODE}, "$ref": "#/$defs/node"},
    {"type": ["integer", "null", "boolean"]},
    {"enum": [1, "two", None, {"three": [3]}, 4.5]},
    {"const": {"a": 'quoted " and \\ and é\n'}},
    {"type": "integer", "exclusiveMinimum": -12, "maximum": 1000},
    {"type": "number", "minimum": 0.25, "exclusiveMaximum": 8},
    {"type": "integer", "multipleOf": 7, "minimum": 10, "maximum": 99},
    {"type": "string", "pattern": "^[a-f]{2}-\\d{3}$"},
    {"type": "string", "pattern": "^[a-z0-9]+$", "minLength": 3, "maxLength": 5},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "date-time"},
    {"type": "array", "prefixItems": [{"const": 1}, {"type": "boolean"}], "items": False, "minItems": 2},
    {
        "anyOf": [
            {"type": "string", "maxLength": 3},
            {"type": "array", "items": {"type": "null"}, "maxItems": 2},
        ]
    },
    {"oneOf": [{"type": "boolean"}, {"type": "integer", "minimum": 0, "maximum": 9}]},
    {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]},
    {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1, "maxProperties": 2},
    {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}}},
    {"type": "string"},
    {"type": "array"},
    True,
]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path = write_model(Path(tmp_path_factory.mktemp("models")) / "tiny.gguf")
    settings = lib.llama_model_default_params()
    settings.vocab_only = True
    model: Any = lib.llama_model_load_from_file(bytes(path), settings)
    yield lib.llama_model_get_vocab(model)
    lib.llama_model_free(model)


@pytest.fixture(scope="module")
def rulebook(vocabulary: Any) -> Rulebook:
    return Rulebook(vocabulary)


def logits(random: np.random.Generator) -> NDArray[np.float32]:
    numbers = random.standard_normal(len(WORDS)).astype(np.float32)
    numbers[list(ENDS)] += 4
    numbers[CLOSING] += 3
    return numbers


def written(tokens: list[int]) -> str:
    data = b"".join(
        bytes([int(WORDS[token][1:-1], 16)]) if WORDS[token].startswith("<0x") else WORDS[token].encode()
        for token in tokens
    )
    return data.decode().replace("\u2581", " ")


def write(matcher: Matcher, seed: int, *, limit: int = 1500) -> list[int]:
    """What a model says that has no idea, sampled first and masked only if that is refused."""
    random, tokens = np.random.default_rng(seed), list[int]()
    while not matcher.finished and len(tokens) < limit:
        numbers = logits(random)
        token = matcher.choose(numbers, int(numbers.argmax()))
        if token in ENDS:
            assert matcher.complete
            break
        matcher.advance(token)
        tokens.append(token)
    return tokens


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:40])
def test_what_is_written_under_a_schema_is_always_valid(rulebook: Rulebook, schema: Any) -> None:
    rule = schema_rule(schema, max_tokens=30)
    for seed in range(8):
        matcher = rulebook.start(rule)
        text = written(write(matcher, seed))
        assert matcher.complete, text
        check_answer(schema, text)


def test_a_text_that_is_cut_is_not_complete(rulebook: Rulebook) -> None:
    matcher = rulebook.start(schema_rule(PERSON))
    write(matcher, 0, limit=5)
    assert not matcher.complete
    assert not matcher.finished


def test_the_mask_refuses_exactly_what_is_not_allowed_one_by_one(rulebook: Rulebook) -> None:
    random = np.random.default_rng(1)
    matcher = rulebook.start(schema_rule(PERSON))
    for _ in range(40):
        before = logits(random)
        masked = before.copy()
        matcher.mask(masked)
        kept = np.isfinite(masked)
        assert np.array_equal(masked[kept], before[kept])
        allowed = {written([token]) for token in range(261, len(WORDS)) if matcher.allows(token)}
        assert {written([int(token)]) for token in np.flatnonzero(kept) if token >= 261} == allowed
        chosen = matcher.choose(before, int(before.argmax()))
        assert chosen == int(masked.argmax())
        matcher.advance(chosen)


def test_an_allowed_choice_stays_though_it_is_not_the_likeliest(rulebook: Rulebook) -> None:
    matcher = rulebook.start(Rule("regex", "[ab]"))
    numbers = np.zeros(len(WORDS), np.float32)
    numbers[WORDS.index("a")] = 1
    assert matcher.choose(numbers, WORDS.index("b")) == WORDS.index("b")
    assert matcher.choose(numbers, WORDS.index("c")) == WORDS.index("a")


def test_an_answer_goes_on_behind_what_was_said(rulebook: Rulebook) -> None:
    whole = write(rulebook.start(schema_rule(PERSON)), 3)
    for cut in range(0, len(whole), 5):
        matcher = rulebook.start(schema_rule(PERSON), whole[:cut])
        for token in whole[cut:]:
            assert matcher.allows(token)
            matcher.advance(token)
        assert matcher.complete


def test_what_was_said_must_keep_to_the_rule(rulebook: Rulebook) -> None:
    with pytest.raises(RuleInvalid, match="token 1 of the answer"):
        rulebook.start(Rule("regex", "ab"), [WORDS.index("a"), WORDS.index("a")])


def test_a_regular_expression_is_the_whole_answer(rulebook: Rulebook) -> None:
    matcher = rulebook.start(Rule("regex", "^(yes|no)$"))
    assert written(write(matcher, 0)) in ("yes", "no")
    assert matcher.finished
    assert [matcher.allows(token) for token in ENDS] == [True, True]


@pytest.mark.parametrize(
    "regex",
    [
        "(?=a)b",
        r"(a)\1",
        "[a",
        "(?:a{1000}){1000}",
        "((a{500}){500}){500}",
        "a{1000000}",
        "(" * 3000 + "a" + ")" * 3000,
    ],
    ids=lambda regex: regex[:20],
)
def test_a_regex_that_cannot_be_kept_is_refused_in_a_sentence(rulebook: Rulebook, regex: str) -> None:
    with pytest.raises(RuleInvalid, match="the regular expression"):
        write(rulebook.start(Rule("regex", regex)), 0)


def write_letters(matcher: Matcher, count: int) -> None:
    for _ in range(count):
        matcher.advance(WORDS.index("a"))
        matcher.check()


def test_a_regex_that_grows_too_costly_on_the_way_ends(rulebook: Rulebook) -> None:
    matcher = rulebook.start(Rule("regex", r"(.{0,60}a){40}"))
    with pytest.raises(RuleInvalid, match=r"costs too much behind \d+ tokens"):
        write_letters(matcher, 300)


@pytest.mark.parametrize(
    "schema", ['{"type":"integer","minimum":5,"maximum":3}', '{"$ref":"#"}', "[1]", '{"a":']
)
def test_a_schema_that_nothing_keeps_is_refused(rulebook: Rulebook, schema: str) -> None:
    with pytest.raises(RuleInvalid, match="the JSON Schema"):
        rulebook.start(Rule("json_schema", schema))


def test_references_as_deep_as_allowed_do_not_end_the_process(rulebook: Rulebook) -> None:
    links = {f"d{index}": {"$ref": f"#/$defs/d{index + 1}"} for index in range(1900)}
    rule = schema_rule({"$defs": links | {"d1900": {"const": 1}}, "$ref": "#/$defs/d0"})
    assert written(write(rulebook.start(rule), 0)) == "1"


def test_ten_thousand_schemas_are_refused_in_a_sentence(rulebook: Rulebook) -> None:
    names = [f"p{index}" for index in range(9_000)]
    schema = {
        "type": "object",
        "properties": {name: {"type": "integer"} for name in names},
        "required": names,
    }
    with pytest.raises(RuleInvalid, match="too big"):
        rulebook.start(schema_rule(schema))


# Grammars

GRAMMARS = {
    "json": r"""
        root   ::= object
        value  ::= object | array | string | number | ("true" | "false" | "null")
        object ::= "{" ( string ":" value ("," string ":" value)* )? "}"
        array  ::= "[" ( value ("," value)* )? "]"
        string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\""
        number ::= "-"? ([0-9] | [1-9] [0-9]{0,15}) ("." [0-9]+)?  # no exponent
    """.replace("\n        ", "\n").strip(),
    "greedy": 'root ::= [a-z]+ "ing" " "?',
    "keyword": 'root ::= ("the" | [a-z]{2,4}) ("." | .)',
    "letters": r'root ::= "\u4e2d" [^\n] [\x41-\x43é\]]* | "\U0001F642" | ""',
    "nested": 'root ::= (a | b-c){2,3}\na ::= "x" a?\nb-c ::= ("(" \n root? ")") | [0-9]',
}


# llama.cpp also allows bytes that begin no character, and control words inside a text.
COMPARED = [*ENDS, *range(5, 5 + 128), *range(261, len(WORDS))]


def allowed_by_llama(sampler: Any, count: int) -> list[bool]:
    data = (lib.llama_token_data * count)(*(lib.llama_token_data(token, 0.0, 0.0) for token in range(count)))
    candidates = lib.llama_token_data_array(data=data, size=count, selected=-1, sorted=False)
    lib.llama_sampler_apply(sampler, ctypes.byref(candidates))
    return [bool(np.isfinite(item.logit)) for item in data]


@pytest.mark.parametrize("name", GRAMMARS)
def test_a_grammar_allows_at_each_place_what_llama_cpp_allows(
    rulebook: Rulebook, vocabulary: Any, name: str
) -> None:
    for seed in range(4):
        matcher = rulebook.start(Rule("grammar", GRAMMARS[name]))
        sampler: Any = lib.llama_sampler_init_grammar(vocabulary, GRAMMARS[name].encode(), b"root")
        random = np.random.default_rng(seed)
        for _ in range(25):
            expected = allowed_by_llama(sampler, len(WORDS))
            assert [matcher.allows(token) for token in COMPARED] == [expected[token] for token in COMPARED]
            numbers = random.standard_normal(len(WORDS)).astype(np.float32)
            token = matcher.choose(numbers, int(numbers.argmax()))
            if token in ENDS or matcher.finished:
                break
            matcher.advance(token)
            lib.llama_sampler_accept(sampler, token)
        lib.llama_sampler_free(sampler)


def test_a_grammar_may_begin_with_itself(rulebook: Rulebook) -> None:
    matcher = rulebook.start(Rule("grammar", 'root ::= root "+" [0-9] | [0-9]'))
    for letter in "1+2+3":
        matcher.advance(WORDS.index(letter))
    assert matcher.complete


@pytest.mark.parametrize(
    ("grammar", "sentence"),
    [
        ("", "no rule 'root'"),
        ("root ::= a", "no rule 'a'"),
        ('root ::= "a"\nroot ::= "b"', "two rules 'root'"),
        ('root ::= "a" )', "line 1 .* instead of the end of the rule"),
        ('root ::= ("a"\n', "line 2 .*'its end' instead of"),
        ('\nroot = "a"', "line 2"),
        ("root ::= [z-a]", "a range in order"),
        (r"root ::= [\uD800]", "a character that there is"),
        (r'root ::= "\q"', "as an escape"),
        ("root ::= <think>", "is no GBNF"),
        ('root ::= "a"{9999}', "more than 2000 times"),
        ("root ::= " + "(" * 100, "50 deep"),
        ("\n".join(f"r{n} ::= r{n + 1}" for n in range(3000)) + '\nr3000 ::= "a"\nroot ::= r0', "too large"),
        ('root ::= "' + "x" * 20_000 + '"', "too large"),
    ],
    ids=lambda text: text[:20],
)
def test_a_grammar_that_is_none_is_refused_with_its_line(grammar: str, sentence: str) -> None:
    with pytest.raises(RuleInvalid, match=sentence):
        to_lark(grammar)


def test_a_grammar_that_costs_too_much_is_refused(rulebook: Rulebook) -> None:
    matcher = rulebook.start(Rule("grammar", "root ::= (.{0,200}){200}"))
    with pytest.raises(RuleInvalid, match="Current row has"):
        write_letters(matcher, 300)
