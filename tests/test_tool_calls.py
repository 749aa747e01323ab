"""Tools offered to models of many families, and their calls read from a stream."""

# ruff: noqa: E501 - calls are shown as they are written

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import pytest
from gguf_models import WORDS, write_model
from hypothesis import given, settings
from hypothesis import strategies as st

from xnai.agents.inference.call_formats import FAMILIES, HERMES, Family, family_of
from xnai.agents.inference.calls import CallReader
from xnai.agents.inference.chat import ChatTemplate
from xnai.agents.inference.engine.rules import Rulebook
from xnai.agents.inference.errors import RuleInvalid
from xnai.agents.inference.requests import ChatMessage, Tool, ToolCall
from xnai.agents.inference.tools import offer_tools
from xnai.protocol.errors import InvalidPayload

PLACE = {"type": "object", "properties": {"q": {"type": "string", "maxLength": 9}}, "required": ["q"]}
SEARCH = Tool(name="search", description="Searches", parameters=PLACE | {"additionalProperties": False})
TREE = {
    "$defs": {"n": {"enum": [1, 2]}},
    "type": "object",
    "properties": {"n": {"$ref": "#/$defs/n"}},
    "required": ["n"],
}
COUNT = Tool(name="count", parameters=TREE | {"additionalProperties": False})
TOOLS = (SEARCH, COUNT)
USER = ChatMessage(role="user", content="Hi")

PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
ONE = [("search", {"q": "a"})]
BOTH = [*ONE, ("count", {"n": 1})]
BAR, LOW = "\uff5c", "\u2581"
DEEPSEEK = (
    f"<{BAR}tool{LOW}calls{LOW}begin{BAR}>"
    f'<{BAR}tool{LOW}call{LOW}begin{BAR}>function<{BAR}tool{LOW}sep{BAR}>search\n```json\n{{"q": "a"}}\n```<{BAR}tool{LOW}call{LOW}end{BAR}>\n'
    f'<{BAR}tool{LOW}call{LOW}begin{BAR}>count<{BAR}tool{LOW}sep{BAR}>{{"n": 1}}<{BAR}tool{LOW}call{LOW}end{BAR}>'
    f"<{BAR}tool{LOW}calls{LOW}end{BAR}>"
)

WRITTEN: list[tuple[str, str, str, list[tuple[str, Any]]]] = [
    ("hermes", 'Hm.\n<tool_call>\n{"name": "search", "arguments": {"q": "a"}}\n</tool_call>', "Hm.\n", ONE),
    (
        "hermes",
        '<tool_call>{"name": "search", "arguments": "{\\"q\\": \\"a\\"}"}</tool_call><tool_call>{"name": "count", "arguments": {"n": 1}}</tool_call> ok',
        " ok",
        BOTH,
    ),
    ("hermes", '<tool_call>{"name": "search", "arguments": {"q": "a"}}', "", ONE),
    (
        "hermes",
        "<tool_call>\n<function=search>\n<parameter=q>\na\n</parameter>\n</function>\n</tool_call>",
        "",
        ONE,
    ),
    ("llama", '{"name": "search", "parameters": {"q": "a"}}', "", ONE),
    (
        "llama",
        '<|python_tag|>{"name": "search", "parameters": {"q": "a"}}; {"name": "count", "parameters": {"n": 1}}',
        "",
        BOTH,
    ),
    ("llama", '<function=search>{"q": "a"}</function>', "", ONE),
    ("llama", '{"type": "function", "function": {"name": "search", "parameters": {"q": "a"}}}', "", ONE),
    (
        "mistral",
        '[TOOL_CALLS][{"name": "search", "arguments": {"q": "a"}}, {"name": "count", "arguments": {"n": 1}}]',
        "",
        BOTH,
    ),
    ("mistral", '[{"name": "search", "arguments": {"q": "a"}, "id": "abcdefghi"}]', "", ONE),
    ("mistral", '[TOOL_CALLS]search[ARGS]{"q": "a"}[TOOL_CALLS]count[CALL_ID]x1[ARGS]{"n": 1}', "", BOTH),
    ("mistral", 'search{"q": "a"}', "", ONE),
    ("mistral", '[TOOL_CALLS]search[ARGS]{"q": "a"} [TOOL_CALLS] count {"n": 1}', "", BOTH),
    ("granite", '<|tool_call|>[{"name": "search", "arguments": {"q": "a"}}]', "", ONE),
    ("granite", 'So: <|tool_call|>[{"name": "search", "arguments": {"q": "a"}}]<|/tool_call|>', "So: ", ONE),
    ("functools", 'functools[{"name": "search", "arguments": {"q": "a"}}]', "", ONE),
    ("deepseek", DEEPSEEK, "", BOTH),
    (
        "command",
        '<|START_ACTION|>[\n{"tool_call_id": "0", "tool_name": "search", "parameters": {"q": "a"}}\n]<|END_ACTION|>',
        "",
        ONE,
    ),
    ("command-r", 'Action: ```json\n[{"tool_name": "search", "parameters": {"q": "a"}}]\n```', "", ONE),
    ("tool_code", "```tool_code\nsearch(q='a')\n```", "", ONE),
    ("lfm", '<|tool_call_start|>[search(q="a"), count(n=1)]<|tool_call_end|>Looking.', "Looking.", BOTH),
    ("lfm", '<|tool_call_start|>[{"name": "search", "arguments": {"q": "a"}}]<|tool_call_end|>', "", ONE),
    (
        "gemma",
        '<|tool_call>call:search{q:<|"|>a<|"|>}<tool_call|><|tool_call>call:count{n:1}<tool_call|>',
        "",
        BOTH,
    ),
    (
        "gemma",
        '<|tool_call>call:search{q:<|"|>{a,b:"c"}\n<|"|>,of:[{x:true},{<|"|>y z<|"|>:<|"|><|"|>}]}<tool_call|>',
        "",
        [("search", {"q": '{a,b:"c"}\n', "of": [{"x": True}, {"y z": ""}]})],
    ),
    ("functiongemma", "<start_function_call>call:search{q:<escape>a<escape>}<end_function_call>", "", ONE),
    ("functiongemma", "<start_function_call>call:search{q:<escape>a<escape>}", "", ONE),
    (
        "nemotron",
        'So.\n<TOOLCALL>[{"name": "search", "arguments": {"q": "a"}}, {"name": "count", "arguments": "{\\"n\\": 1}"}]</TOOLCALL>',
        "So.\n",
        BOTH,
    ),
    (
        "seed",
        "<seed:tool_call>\n<function=search>\n<parameter=q>a</parameter>\n</function>\n</seed:tool_call>",
        "",
        ONE,
    ),
    (
        "glm",
        "\n<tool_call>search\n<arg_key>q</arg_key>\n<arg_value>a</arg_value>\n</tool_call><tool_call>count<arg_key>n</arg_key><arg_value>1</arg_value></tool_call>",
        "\n",
        BOTH,
    ),
    ("glm", "<tool_call>count\n</tool_call>", "", [("count", {})]),
    ("pythonic", '[search(q="a"), count(n=1)]', "", BOTH),
]
TEXTS: list[tuple[str, str]] = [
    ("hermes", "nothing of the kind"),
    ("hermes", "a < b <tool_cal"),
    ("hermes", '<tool_call>{"name": "search", "arguments": {"q": }</tool_call> and on'),
    ("hermes", '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "search", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": "search", "arguments": {"q": NaN}}</tool_call>'),
    ("hermes", "<tool_call>" + "[" * 50_000),
    ("glm", "<tool_call>search<arg_key>q</arg_key></tool_call>"),
    ("glm", "<tool_call>" + "<arg_key>" * 20_000),
    ("seed", "<seed:tool_call>" + "<function=" * 19_000),
    ("seed", "<seed:tool_call><function=search>" + "<parameter=q>" * 15_000 + "</function></seed:tool_call>"),
    ("deepseek", DEEPSEEK[:42] + DEEPSEEK[54:66] + "```" + " " * 190_000),
    ("mistral", "[TOOL_CALLS]search{}" + " " * 190_000 + "!"),
    ("gemma", "<|tool_call>call:search{" + ", " * 90_000 + "}<tool_call|>"),
    ("gemma", "<|tool_call>call:search{q:a}<tool_call|>"),
    ("llama", '{"city": "Bern"}'),
    ("llama", '  {"name": "Bern"}'),
    ("mistral", "[1, 2, 3]"),
    ("mistral", "searching …"),
    ("pythonic", "[search(q=open('x'))]"),
    ("pythonic", "[" + "-" * 50_000 + "1]"),
    ("tool_code", "```tool_code\nimport os\n```"),
]


def family(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


def read(reader: CallReader, text: str, size: int) -> str:
    parts = [reader.push(text[at : at + size]) for at in range(0, len(text), size)]
    return "".join(parts) + reader.finish()


def found(reader: CallReader) -> list[tuple[str, Any]]:
    return [(call.name, call.arguments) for call in reader.calls]


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize(("name", "written", "text", "calls"), WRITTEN)
def test_calls_are_found_in_what_a_family_writes(
    name: str, written: str, text: str, calls: list[tuple[str, Any]], *, size: int
) -> None:
    reader = CallReader(TOOLS, family(name))
    assert read(reader, written, size) == text
    assert found(reader) == calls
    assert len({call.id for call in reader.calls}) == len(calls)
    assert all(len(call.id) == 9 and call.id.isalnum() for call in reader.calls)


@pytest.mark.parametrize(("name", "text"), TEXTS, ids=lambda value: value[:20])
def test_what_is_no_call_comes_back_as_text(name: str, text: str) -> None:
    for size in (len(text), 5) if len(text) < 1000 else (len(text),):
        reader = CallReader(TOOLS, family(name))
        assert read(reader, text, size) == text
        assert reader.calls == []


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("hermes", "<tool_call><function={}><parameter={}>\n12\n</parameter></function></tool_call>"),
        ("glm", "<tool_call>{}<arg_key>{}</arg_key><arg_value>12</arg_value></tool_call>"),
    ],
)
def test_a_value_without_quotes_is_what_its_parameter_is(name: str, written: str) -> None:
    reader = CallReader(TOOLS, family(name))
    assert read(reader, written.format("search", "q") + written.format("count", "n"), 9) == ""
    assert found(reader) == [("search", {"q": "12"}), ("count", {"n": 12})]


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet='<tool_ca/>{}"name: srh[],x\n', max_size=60), size=st.integers(1, 9))
def test_no_text_is_lost_however_it_is_cut(text: str, size: int) -> None:
    for kind in FAMILIES:
        reader = CallReader(TOOLS, kind)
        rest = read(reader, text, size)
        assert rest == text or reader.calls


def test_text_leaves_at_once_unless_it_may_begin_a_mark() -> None:
    reader = CallReader(TOOLS, HERMES)
    assert reader.push("Let me see <") == "Let me see "
    assert reader.push("b> <tool") == "<b> "
    assert reader.push('_call>{"name": "search"') == ""
    assert reader.push(', "arguments": {"q": "a"}}</tool_call>!') == "!"
    assert found(reader) == ONE


def test_a_call_without_an_end_is_text_at_some_length() -> None:
    reader = CallReader(TOOLS, HERMES)
    text = "<tool_call>" + "x" * 300_000
    assert reader.push(text) == text


def test_a_family_is_known_by_its_template() -> None:
    assert family_of("… <tool_call> …").name == "hermes"
    assert family_of("… [TOOL_CALLS] …").name == "mistral"
    assert family_of("… <|python_tag|> …").name == "llama"
    assert family_of(f"… <{BAR}tool{LOW}call{LOW}begin{BAR}> …").name == "deepseek"
    assert family_of("… <tool_call>{name}\\n<arg_key> …").name == "glm"
    assert family_of("… <|tool_call>call: …").name == "gemma"
    assert family_of("… <|tool_call|> …").name == "granite"
    assert family_of("… <function=… <seed:tool_call> …").name == "seed"
    assert family_of("nothing") is HERMES


@pytest.mark.parametrize("kind", FAMILIES, ids=lambda kind: kind.name)
def test_the_words_of_calls_are_shown_where_they_are_read(kind: Family) -> None:
    source = PLAIN + "{{ tools and '' }}{# " + kind.sign + " #}"
    assert offer_tools(template(source), [USER], TOOLS).shown == family_of(source).words
    assert offer_tools(template(source), [USER], TOOLS, choice="none").shown == ()


# Offering


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, control_words=(), begin_word="", end_word="")


KNOWING = "{% if tools %}{{ tools|tojson }}{% endif %}" + PLAIN + "{# <tool_call> #}"


def test_a_template_that_knows_tools_shows_them() -> None:
    offer = offer_tools(template(KNOWING), [USER], TOOLS)
    assert offer.pieces[0].startswith('[{"type": "function", "function": {"name": "search"')
    assert offer.rule is None
    assert offer.reader is not None


def test_a_template_that_knows_no_tools_gets_a_system_text_and_calls_as_text() -> None:
    call = ToolCall(name="search", arguments={"q": "a"}, id="1")
    messages = [
        USER,
        ChatMessage(role="assistant", calls=(call,)),
        ChatMessage(role="tool", content="found", call="1"),
    ]
    (prompt,) = offer_tools(template(PLAIN), messages, TOOLS).pieces
    assert prompt.startswith("<system>You may call these functions")
    assert '"name": "search"' in prompt
    assert '<assistant><tool_call>\n{"name": "search", "arguments": {"q": "a"}}\n</tool_call><user>' in prompt
    assert prompt.endswith("<tool_response>\nfound\n</tool_response><assistant>")


def test_none_shows_no_tools_and_reads_no_calls() -> None:
    offer = offer_tools(template(KNOWING), [USER], TOOLS, choice="none")
    assert offer.pieces == ["<user>Hi<assistant>"]
    assert offer.reader is None


@pytest.fixture(scope="module")
def rulebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rulebook]:
    path = write_model(Path(tmp_path_factory.mktemp("models")) / "tiny.gguf")
    settings = lib.llama_model_default_params()
    settings.vocab_only = True
    model: Any = lib.llama_model_load_from_file(bytes(path), settings)
    yield Rulebook(lib.llama_model_get_vocab(model))
    lib.llama_model_free(model)


@pytest.mark.parametrize("kind", FAMILIES, ids=lambda kind: kind.name)
@pytest.mark.parametrize(("choice", "names"), [("required", {"search", "count"}), ("count", {"count"})])
def test_a_call_that_must_come_does(rulebook: Rulebook, kind: Family, choice: str, names: set[str]) -> None:
    source = PLAIN + "{{ tools and '' }}{# " + kind.sign + " #}"
    called = set()
    for seed in range(4):
        offer = offer_tools(template(source), [USER], TOOLS, choice=choice, max_tokens=50)
        assert "".join(offer.pieces).endswith("<assistant>" + kind.forced)
        assert offer.rule is not None
        assert offer.reader is not None
        matcher, random, data = rulebook.start(offer.rule), np.random.default_rng(seed), b""
        while not matcher.finished:
            numbers = random.standard_normal(len(WORDS)).astype(np.float32)
            numbers[5:261] -= 9  # bytes
            token = matcher.choose(numbers, int(numbers.argmax()))
            matcher.advance(token)
            data += WORDS[token].replace("\u2581", " ").encode()
        assert offer.reader.push(data.decode()) == ""
        assert offer.reader.finish() == ""
        ((name, arguments),) = found(offer.reader)
        assert arguments.keys() == {"q" if name == "search" else "n"}
        called.add(name)
    assert called <= names


def test_a_forced_call_that_was_cut_is_text() -> None:
    reader = offer_tools(template(KNOWING), [USER], TOOLS, choice="required").reader
    assert reader is not None
    assert reader.push('{"name": "sea') == ""
    assert reader.finish() == '{"name": "sea'
    assert reader.calls == []


def test_a_call_cannot_be_forced_with_parameters_outside_the_subset() -> None:
    tool = Tool(name="x", parameters={"type": "object", "properties": {"a": {"not": {}}}})
    assert offer_tools(template(KNOWING), [USER], [tool]).reader
    with pytest.raises(RuleInvalid, match="'not' is not supported"):
        offer_tools(template(KNOWING), [USER], [tool], choice="required")


@pytest.mark.parametrize(
    ("tools", "choice"),
    [
        ([SEARCH, SEARCH], "auto"),
        ([Tool(name="")], "auto"),
        ([Tool(name="a b")], "auto"),
        ([Tool(name=f"t{number}") for number in range(200)], "auto"),
        ([SEARCH], "other"),
        ([], "required"),
        ([], "search"),
    ],
    ids=str,
)
def test_tools_that_cannot_be_offered_are_refused(tools: list[Tool], choice: str) -> None:
    with pytest.raises(InvalidPayload):
        offer_tools(template(KNOWING), [USER], tools, choice=choice)


def test_arguments_of_a_forced_call_are_json() -> None:
    offer = offer_tools(template(KNOWING), [USER], TOOLS, choice="count")
    assert offer.rule is not None
    assert json.loads(offer.rule.text)["anyOf"][0]["properties"]["arguments"]["properties"]["n"] == {
        "$ref": "#/anyOf/0/properties/arguments/$defs/n"
    }
