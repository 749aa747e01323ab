"""Messages to a prompt, with the template that a model carries."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from xnai.agents.inference.errors import TemplateFailed
from xnai.agents.inference.requests import ChatMessage, Tool, ToolCall
from xnai.agents.inference.sandbox import FUEL, LONGEST, Sandbox

_BREAK = "\ufdd0"  # a code point that Unicode keeps out of all text
_TIMES = 32  # that a template may look at, copy or write all that it is given
_TOOLS = re.compile(r"\btools\b")


class ChatTemplate:
    """Renders messages into pieces of a prompt. One thread at a time.

    A template is code out of a file from somewhere: it runs in `Sandbox`. Contents are often somebody else's
    text: a control word in them is cut in two, and stays mere text.

    Attributes:
        source: as it was given.
        knows_tools: whether it can show tools to the model.
    """

    def __init__(self, source: str, *, control_words: Sequence[str], begin_word: str, end_word: str) -> None:
        """Raises TemplateFailed if there is no template or it is not valid Jinja."""
        if not source:
            raise TemplateFailed("the model has no chat template: give it a prompt, not messages")
        if len(source) > LONGEST:
            raise TemplateFailed(f"the model's chat template has {len(source)} characters, over {LONGEST}")
        self.source = source
        self.knows_tools = bool(_TOOLS.search(source))
        self._sandbox = Sandbox()
        try:
            self._template = self._sandbox.from_string(source)
        except Exception as error:  # foreign code: nested too deep for the parser, or for Python's own
            raise TemplateFailed(f"the model's chat template is not valid: {_short(error)}") from error
        self._words = {"bos_token": begin_word, "eos_token": end_word}
        spelled = "|".join(re.escape(word) for word in control_words if len(word) > 1)
        self._control = re.compile(f"(?=(?:{spelled}))(.)" if spelled else "(?!)", re.DOTALL)

    def render(
        self, messages: Sequence[ChatMessage], *, tools: Sequence[Tool] = (), begun: str = ""
    ) -> list[str]:
        """The prompt up to where the assistant speaks, in pieces to be turned into tokens one by one.

        `begun` is what the assistant has said already, with control words that count.

        Raises TemplateFailed with what the template says against these messages.
        """
        try:
            text = self._render(messages, tools)
        except TemplateFailed:
            merged = _without_system(messages)
            if merged is None:
                raise
            text = self._render(merged, tools)
        return (text + begun).split(_BREAK)

    def _render(self, messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> str:
        given: dict[str, Any] = {
            "messages": [self._turn(message) for message in messages],
            "tools": self._defuse([_function(tool) for tool in tools]) or None,
        }
        try:
            self._sandbox.fuel = FUEL + _TIMES * self._sandbox.weight([given["messages"], given["tools"]])
            text = self._template.render(**given, add_generation_prompt=True, **self._words)
            text.encode()
        except Exception as error:  # foreign code: it may divide by zero, recurse, write half a character
            raise TemplateFailed(
                f"the model's chat template refuses these messages: {_short(error)}"
            ) from error
        return text

    def _turn(self, message: ChatMessage) -> dict[str, Any]:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.calls:
            turn["tool_calls"] = [_call(call) for call in message.calls]
        if message.call is not None:
            turn["tool_call_id"] = message.call
        if message.name is not None:
            turn["name"] = message.name
        return {key: self._defuse(value) for key, value in turn.items()}

    def _defuse(self, value: Any) -> Any:
        """The same value, with all its texts cut where they hold a control word."""
        if isinstance(value, str):
            return self._control.sub(lambda letter: letter[1] + _BREAK, value.replace(_BREAK, ""))
        if isinstance(value, dict):
            return {self._defuse(key): self._defuse(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._defuse(item) for item in value]
        return value


def _function(tool: Tool) -> dict[str, Any]:
    parameters = tool.parameters or {"type": "object", "properties": {}}
    described = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": described}


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _without_system(messages: Sequence[ChatMessage]) -> list[ChatMessage] | None:
    """What the system says put before what the user says first, for templates that know no system."""
    if len(messages) < 2 or messages[0].role != "system" or messages[1].role != "user":
        return None
    content = f"{messages[0].content}\n\n{messages[1].content}"
    return [ChatMessage(role="user", content=content), *messages[2:]]


def _short(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    name = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
    return f"{name}{error}"[:300].encode(errors="backslashreplace").decode()
