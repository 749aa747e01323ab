"""Calls of tools read out of what a model writes, while it writes.

What is no valid call of a tool that was offered stays text.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from xnai.agents.inference.call_formats import Family, calls_in
from xnai.agents.inference.errors import AnswerInvalid
from xnai.agents.inference.requests import Tool, ToolCall
from xnai.agents.inference.schemas import Schema, check_answer

_LONGEST = 200_000  # characters of a call; more of it is text


class CallReader:
    """Reads calls out of an answer while it is written.

    Attributes:
        calls: those found so far.
    """

    def __init__(self, tools: Sequence[Tool], family: Family, *, schema: Schema | None = None) -> None:
        """With `schema` the answer is one call from its first character on, and held to that schema."""
        self.calls: list[ToolCall] = []
        self._tools = {tool.name: tool for tool in tools}
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
                name.startswith(text) or text.startswith(f"{name}{{") for name in self._tools
            )
        if self._family.name == "pythonic":
            return _begins_like(text[1:].lstrip(), [f"{name}(" for name in self._tools])
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
            found = list(calls_in(opening, body, self._tools))
            calls = [ToolCall(name=name, arguments=_arguments(given), id=_new_id()) for name, given in found]
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            return False
        if not calls or any(call.name not in self._tools for call in calls):
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
