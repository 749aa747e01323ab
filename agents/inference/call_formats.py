"""How families of models write calls of tools.

Each was trained on a way of its own; which one, its chat template shows.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from xnai.agents.inference.requests import Tool

Found = tuple[str, Any]
"""Name and arguments, as they were written."""


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """How a family of models writes calls.

    Attributes:
        sign: what stands in its chat templates.
        marks: what a call begins and ends with; "" for the end of the answer.
        bare: how an answer begins that is a call without any mark.
        forced: what is put in front of a call that must come.
        keys: of the name and of the arguments.
        within: words that stand between the marks.
    """

    name: str
    sign: str
    marks: tuple[tuple[str, str], ...]
    bare: str = ""
    forced: str = ""
    keys: tuple[str, str] = ("name", "arguments")
    within: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """What calls are known by: many models have tokens of their own for them, which are no text."""
        return *(word for mark in self.marks for word in mark if word), *self.within


_GEMMA_QUOTE, _FUNCTIONGEMMA_QUOTE = '<|"|>', "<escape>"

HERMES = Family(
    name="hermes", sign="<tool_call>", marks=(("<tool_call>", "</tool_call>"),), forced="<tool_call>\n"
)
FAMILIES = (
    Family(
        name="deepseek",
        sign="<\uff5ctool\u2581call\u2581begin\uff5c>",
        marks=(
            ("<\uff5ctool\u2581calls\u2581begin\uff5c>", "<\uff5ctool\u2581calls\u2581end\uff5c>"),
            ("<\uff5ctool\u2581call\u2581begin\uff5c>", ""),
        ),
        within=("<\uff5ctool\u2581sep\uff5c>", "<\uff5ctool\u2581call\u2581end\uff5c>"),
    ),
    Family(
        name="mistral",
        sign="[TOOL_CALLS]",
        marks=(("[TOOL_CALLS]", ""),),
        bare="[",
        forced="[TOOL_CALLS][",
        within=("[ARGS]", "[CALL_ID]"),
    ),
    Family(
        name="command",
        sign="<|START_ACTION|>",
        marks=(("<|START_ACTION|>", "<|END_ACTION|>"),),
        bare="[",
        forced="<|START_ACTION|>[",
        keys=("tool_name", "parameters"),
    ),
    Family(
        name="command-r",
        sign="Action: ```json",
        marks=(("Action: ```json", "```"), ("Action:```json", "```")),
        forced="Action: ```json\n[",
        keys=("tool_name", "parameters"),
    ),
    Family(name="functools", sign="functools[", marks=(("functools", ""),), forced="functools["),
    Family(
        name="granite",
        sign="<|tool_call|>",
        marks=(("<|tool_call|>", "<|/tool_call|>"), ("<tool_call>", "</tool_call>")),
        bare="[",
        forced="<|tool_call|>[",
    ),
    Family(
        name="lfm",
        sign="<|tool_list_start|>",
        marks=(("<|tool_call_start|>", "<|tool_call_end|>"),),
        forced="<|tool_call_start|>[",
    ),
    Family(
        name="gemma", sign="<|tool_call>", marks=(("<|tool_call>", "<tool_call|>"),), within=(_GEMMA_QUOTE,)
    ),
    Family(
        name="functiongemma",
        sign="<start_function_call>",
        marks=(("<start_function_call>", "<end_function_call>"),),
        within=(_FUNCTIONGEMMA_QUOTE,),
    ),
    Family(name="nemotron", sign="<TOOLCALL>", marks=(("<TOOLCALL>", "</TOOLCALL>"),), forced="<TOOLCALL>["),
    Family(name="seed", sign="<seed:tool_call>", marks=(("<seed:tool_call>", "</seed:tool_call>"),)),
    Family(
        name="glm",
        sign="<arg_key>",
        marks=(("<tool_call>", "</tool_call>"),),
        within=("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    ),
    HERMES,
    Family(
        name="llama",
        sign="<|python_tag|>",
        marks=(("<|python_tag|>", ""), ("<function=", "</function>")),
        bare="{",
        keys=("name", "parameters"),
    ),
    Family(name="llama", sign='"parameters": dictionary', marks=(), bare="{", keys=("name", "parameters")),
    Family(name="function", sign="<function=", marks=(("<function=", "</function>"),)),
    Family(name="tool_code", sign="tool_code", marks=(("```tool_code", "```"),)),
    Family(name="pythonic", sign="func_name1(", marks=(("<|python_start|>", "<|python_end|>"),), bare="["),
)
"""Those that are known; a template's is the first whose sign it holds, and otherwise Hermes'."""


def family_of(source: str) -> Family:
    """How a model with this chat template writes calls."""
    return next((family for family in FAMILIES if family.sign in source), HERMES)


def calls_in(opening: str, body: str, tools: Mapping[str, Tool]) -> Iterator[Found]:
    """The calls in what stands between two marks. Raises ValueError and SyntaxError for anything else."""
    body = body.strip()
    if opening == "<function=":
        name, _, given = body.partition(">")
        yield name, json.loads(given)
    elif body.startswith("<function="):
        yield from _tagged(body, tools)
    elif "tool\u2581sep" in body:
        yield from _separated(body)
    elif body.startswith("call:"):
        yield _quoted(body)
    elif "<arg_key>" in body or body in tools:
        yield _keyed(body, tools)
    elif opening in ("```tool_code", "<|python_start|>") or re.match(r"\[\s*[A-Za-z_][\w.]*\(", body):
        yield from _pythonic(body)
    elif body[:1] in ("{", "["):
        yield from _written_as_json(body)
    else:
        yield from _named(body)


def _written_as_json(body: str) -> Iterator[Found]:
    """An object, several of them with semicolons or blanks between, or a list."""
    decoder, at = json.JSONDecoder(), 0
    while at < len(body):
        value, at = decoder.raw_decode(body, at)
        for call in value if isinstance(value, list) else [value]:
            yield _spelled_out(call)
        while at < len(body) and body[at] in " \n\t\r;,":
            at += 1


def _spelled_out(call: Any) -> Found:
    if isinstance(call, dict) and isinstance(call.get("function"), dict):
        call = call["function"]
    if not isinstance(call, dict):
        raise ValueError("a call is an object")
    name: Any = next((call[key] for key in ("name", "tool_name", "function") if key in call), None)
    given: Any = next((call[key] for key in ("arguments", "parameters", "args") if key in call), {})
    if not isinstance(name, str):
        raise ValueError("a call without a name")
    return name, given


def _named(body: str) -> Iterator[Found]:
    """`name[ARGS]{…}`, or without the mark between them; one after the other."""
    decoder, at = json.JSONDecoder(), 0
    head = re.compile(r"\s*+(?:\[TOOL_CALLS\])?\s*+([\w.-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*+(?=\{)")
    while at < len(body):
        found = head.match(body, at)
        if not found:
            raise ValueError("a call begins with a name")
        given, at = decoder.raw_decode(body, found.end())
        yield found[1], given


def _separated(body: str) -> Iterator[Found]:
    """DeepSeek's: a kind, a separator, name and JSON in a fence; or the name, a separator and JSON."""
    for part in re.split("<\uff5ctool\u2581call\u2581(?:begin|end)\uff5c>", body):
        if part.strip():
            before, _, after = part.partition("<\uff5ctool\u2581sep\uff5c>")
            name, fence, fenced = after.partition("```")
            if fence:
                yield name.strip(), json.loads(fenced.strip().removeprefix("json").removesuffix("```"))
            else:
                yield before.strip(), json.loads(after)


def _tagged(body: str, tools: Mapping[str, Tool]) -> Iterator[Found]:
    """`<function=name><parameter=x>value</parameter></function>`, one after the other."""
    for inside in _between(body, "<function=", "</function>"):
        name, _, rest = inside.partition(">")
        given = [part.partition(">")[::2] for part in _between(rest, "<parameter=", "</parameter>")]
        yield name, _typed(given, tools.get(name))


def _keyed(body: str, tools: Mapping[str, Tool]) -> Found:
    """GLM's: a name, and keys and values in turns."""
    name = body.partition("<arg_key>")[0].strip()
    keys, values = (_between(body, f"<arg_{part}>", f"</arg_{part}>") for part in ("key", "value"))
    return name, _typed(list(zip(keys, values, strict=True)), tools.get(name))


def _between(text: str, opening: str, closing: str) -> Iterator[str]:
    """What stands between each two marks, in one pass: whoever makes a model write them decides how many."""
    at = text.find(opening)
    while at >= 0:
        at += len(opening)
        end = text.find(closing, at)
        if end < 0:
            raise ValueError("a mark without its end")
        yield text[at:end]
        at = text.find(opening, end + len(closing))


def _typed(given: Sequence[tuple[str, str]], tool: Tool | None) -> dict[str, Any]:
    """Values without quotes: as they are where the parameter is a string, and else JSON if they are."""
    properties = tool.parameters.get("properties", {}) if tool else {}
    values = {}
    for key, text in given:
        schema = properties.get(key) if isinstance(properties, dict) else None
        plain = isinstance(schema, dict) and schema.get("type") == "string"
        text = text.removeprefix("\n").removesuffix("\n")
        values[key.strip()] = text if plain else _value(text)
    return values


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _quoted(body: str) -> Found:
    """Gemma's `call:name{key:<|"|>text<|"|>,other:1}`: JSON with quotes of its own, and keys without any."""
    found = re.fullmatch(r"call:([\w.-]+)\s*(\{.*\})", body, re.DOTALL)
    if not found:
        raise ValueError("a call has a name and arguments")
    quote = _GEMMA_QUOTE if _GEMMA_QUOTE in body else _FUNCTIONGEMMA_QUOTE
    parts = found[2].split(quote)
    parts[::2] = (re.sub(r"([{,]\s*)([A-Za-z_][\w.-]*)\s*:", r'\1"\2":', part) for part in parts[::2])
    parts[1::2] = map(json.dumps, parts[1::2])
    return found[1], json.loads("".join(parts))


def _pythonic(body: str) -> Iterator[Found]:
    """`f(a=1)`, or a list of such calls, with literals for arguments."""
    tree = ast.parse(body, mode="eval").body
    for call in tree.elts if isinstance(tree, ast.List) else [tree]:
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("a call with arguments by name")
        given = {str(argument.arg): ast.literal_eval(argument.value) for argument in call.keywords}
        yield ast.unparse(call.func), given
