"""Calls of tools read out of what a model writes, while it writes.

Each family of models was trained on a way of its own to write a call; which one, its chat template shows.
What is no valid call of a tool that was offered stays text.
"""

from __future__ import annotations

import ast
import json
import re
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from xnai.agents.inference.errors import AnswerInvalid
from xnai.agents.inference.requests import Tool, ToolCall
from xnai.agents.inference.schemas import Schema, check_answer

_LONGEST = 200_000  # characters of a call; more of it is text

Found = tuple[str, Any]
"""Name and arguments, as they were written."""


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """How a family of models writes calls.

    Attributes:
        sign: what stands in its chat templates.
        marks: what a call begins and ends with; "" for the end of the answer.
        bare: how an answer begins that is a call without any mark: control words are not part of a text.
        forced: what is put in front of a call that must come.
        keys: of the name and of the arguments.
    """

    name: str
    sign: str
    marks: tuple[tuple[str, str], ...]
    bare: str = ""
    forced: str = ""
    keys: tuple[str, str] = ("name", "arguments")


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
    ),
    Family(
        name="mistral", sign="[TOOL_CALLS]", marks=(("[TOOL_CALLS]", ""),), bare="[", forced="[TOOL_CALLS]["
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


class CallReader:
    """Reads calls out of an answer while it is written.

    Attributes:
        calls: those found so far.
    """

    def __init__(self, tools: Sequence[Tool], family: Family, *, schema: Schema | None = None) -> None:
        """With `schema` the answer is one call from its first character on, and held to that schema."""
        self.calls: list[ToolCall] = []
        self._names = {tool.name for tool in tools}
        self._family, self._schema = family, schema
        self._held = ""
        self._mark: tuple[str, str] | None = None  # of the call that is being read
        self._begins = True  # nothing but blanks has been written

    def push(self, text: str) -> str:
        """What may leave of the answer so far: no part of a call, nor what could become one."""
        self._held += text
        if self._schema is not None:
            return ""
        return "".join(self._read())

    def finish(self) -> str:
        """The rest of the answer that is text. Nothing may be pushed afterwards."""
        held, self._held = self._held, ""
        if self._schema is not None:
            return self._forced(held)
        opening = self._mark[0] if self._mark else ""
        body = held[len(opening) :]
        if (self._mark or self._may_be_bare(held)) and self._take(opening, body):
            return ""
        return held

    def _read(self) -> Iterator[str]:
        while True:
            if self._mark is None:
                if self._begins and self._may_be_bare(self._held):
                    return
                yield self._until_mark()
            if self._mark is None:
                return
            opening, closing = self._mark
            end = self._held.find(closing, len(opening)) if closing else -1
            if end < 0 and len(self._held) <= _LONGEST:
                return
            taken = self._held[: end + len(closing)] if end >= 0 else self._held
            self._held = self._held[len(taken) :]
            self._mark = None
            if end < 0 or not self._take(opening, taken[len(opening) : end]):
                yield taken

    def _until_mark(self) -> str:
        """Cuts off what stands before a mark, or before what may be the beginning of one."""
        found = [(at, mark) for mark in self._family.marks if (at := self._held.find(mark[0])) >= 0]
        if found:
            at, self._mark = min(found, key=lambda place: place[0])
        else:
            at = len(self._held) - max(
                (_overlap(self._held, mark[0]) for mark in self._family.marks), default=0
            )
        text, self._held = self._held[:at], self._held[at:]
        self._begins = self._begins and not text.strip()
        return text

    def _may_be_bare(self, text: str) -> bool:
        """Whether the whole answer may be a call without any mark."""
        text = text.lstrip()
        if not self._begins or not self._family.bare or len(text) > _LONGEST:
            return False
        if not text:
            return bool(self._held)
        if text[0] != self._family.bare:
            return self._family.name == "mistral" and any(
                name.startswith(text) or text.startswith(f"{name}{{") for name in self._names
            )
        if self._family.name == "pythonic":
            return _begins_like(text[1:].lstrip(), [f"{name}(" for name in self._names])
        keys = (
            '"name"',
            '"tool_name"',
            '"parameters"',
            '"arguments"',
            '"type"',
            '"function"',
            '"tool_call_id"',
        )
        return _begins_like(text.lstrip("[ \n\t").removeprefix("{").lstrip(), [*keys, '"id"'])

    def _take(self, opening: str, body: str) -> bool:
        """Whether this is calls, and nothing else; they are taken then."""
        try:
            found = list(_found(opening, body))
            calls = [ToolCall(name=name, arguments=_arguments(given), id=_new_id()) for name, given in found]
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            return False
        if not calls or any(call.name not in self._names for call in calls):
            return False
        self.calls += calls
        return True

    def _forced(self, text: str) -> str:
        try:
            value = check_answer(self._schema or {}, text)
        except AnswerInvalid:
            return text
        name, arguments = (value[key] for key in self._family.keys)
        self.calls.append(ToolCall(name=name, arguments=arguments, id=_new_id()))
        return ""


# Ways to write a call


def _found(opening: str, body: str) -> Iterator[Found]:
    """The calls in what stands between two marks. Raises ValueError and SyntaxError for anything else."""
    body = body.strip()
    if opening == "<function=":
        name, _, given = body.partition(">")
        yield name, json.loads(given)
    elif body.startswith("<function="):
        yield from _tagged(body)
    elif "tool\u2581sep" in body:
        yield from _separated(body)
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
    head = re.compile(r"\s*(?:\[TOOL_CALLS\])?\s*([\w.-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(?=\{)")
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
            fenced = re.fullmatch(r"\s*([\w.-]+)\s*```(?:json)?\s*(.*?)\s*```\s*", after, re.DOTALL)
            if fenced:
                yield fenced[1], json.loads(fenced[2])
            else:
                yield before.strip(), json.loads(after)


def _tagged(body: str) -> Iterator[Found]:
    """`<function=name><parameter=x>value</parameter></function>`: values are JSON, or else text."""
    calls: list[tuple[str, str]] = re.findall(r"<function=([^>\s]+)>(.*?)</function>", body, re.DOTALL)
    for name, inside in calls:
        given = re.finditer(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", inside, re.DOTALL)
        yield name, {found[1]: _value(found[2]) for found in given}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _pythonic(body: str) -> Iterator[Found]:
    """`f(a=1)`, or a list of such calls, with literals for arguments."""
    tree = ast.parse(body, mode="eval").body
    for call in tree.elts if isinstance(tree, ast.List) else [tree]:
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("a call with arguments by name")
        given = {str(argument.arg): ast.literal_eval(argument.value) for argument in call.keywords}
        yield ast.unparse(call.func), given


def _arguments(given: Any) -> dict[str, Any]:
    given = json.loads(given) if isinstance(given, str) else given
    if not isinstance(given, dict):
        raise ValueError("arguments are an object")
    plain = json.dumps(given, allow_nan=False)  # a literal of Python may be no JSON
    return dict(json.loads(plain))


def _new_id() -> str:
    return secrets.token_hex(5)[:9]  # Mistral's templates take nothing but nine letters and digits


def _overlap(text: str, mark: str) -> int:
    """How much of the text's end is the beginning of a mark."""
    return next(
        (size for size in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:size])), 0
    )


def _begins_like(text: str, words: Sequence[str]) -> bool:
    return any(text.startswith(word) or word.startswith(text) for word in words)
