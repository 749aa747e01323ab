"""Tools offered to a model: shown in its prompt, and a call of one forced where one must come."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from xnai.agents.inference.call_formats import HERMES, Family, family_of
from xnai.agents.inference.calls import CallReader
from xnai.agents.inference.chat import ChatTemplate
from xnai.agents.inference.frames import Rule
from xnai.agents.inference.requests import ChatMessage, Tool
from xnai.agents.inference.schemas import schema_rule
from xnai.protocol.errors import InvalidPayload

MOST_TOOLS = 128

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation ready for the engine.

    Attributes:
        pieces: the prompt.
        rule: what holds the answer to a call, if one must come.
        reader: for what the model writes; None if it may call nothing.
        shown: control words that the reader has to see.
    """

    pieces: list[str]
    rule: Rule | None = None
    reader: CallReader | None = None
    shown: tuple[str, ...] = ()


def offer_tools(
    template: ChatTemplate,
    messages: Sequence[ChatMessage],
    tools: Sequence[Tool],
    *,
    choice: str = "auto",
    max_tokens: int | None = None,
) -> Offer:
    """Renders a conversation in which the model may, must or must not call tools.

    `choice` is "auto", "none", "required" or the name of a tool. A template that knows no tools is shown them
    in a system message, with Hermes' way to call.

    Raises InvalidPayload for tools that are not valid, RuleInvalid for a call that must come and whose
    parameters cannot be held to, and TemplateFailed.
    """
    check_tools(tools, choice)
    if not template.knows_tools:
        messages = [_as_text(message) for message in messages]
    if not tools or choice == "none":
        return Offer(pieces=template.render(messages))
    family = family_of(template.source) if template.knows_tools else HERMES
    if not template.knows_tools:
        messages = _shown(messages, tools)
    shown = tools if template.knows_tools else ()
    if choice == "auto":
        pieces = template.render(messages, tools=shown)
        return Offer(pieces=pieces, reader=CallReader(tools, family), shown=family.words)
    wanted = [tool for tool in tools if choice in ("required", tool.name)]
    schema = _call_schema(wanted, family)
    return Offer(
        pieces=template.render(messages, tools=shown, begun=family.forced),
        rule=schema_rule(schema, max_tokens=max_tokens),
        reader=CallReader(wanted, family, schema=schema),
    )


def check_tools(tools: Sequence[Tool], choice: str) -> None:
    """Raises InvalidPayload for tools that cannot be offered, or a choice among them that cannot be made."""
    names = [tool.name for tool in tools]
    if len(names) > MOST_TOOLS:
        raise InvalidPayload(f"{len(names)} tools: at most {MOST_TOOLS} are allowed")
    for name in names:
        if not _NAME.fullmatch(name):
            raise InvalidPayload(f"a tool's name is 1 to 64 of A-Z a-z 0-9 _ . -, unlike {name[:80]!r}")
        if names.count(name) > 1:
            raise InvalidPayload(f"two tools are named {name!r}")
    if choice not in ("auto", "none", *names) and not (choice == "required" and names):
        raise InvalidPayload(f"tool_choice {choice[:80]!r} is no tool that was offered")


def _call_schema(tools: Sequence[Tool], family: Family) -> dict[str, Any]:
    """Of a call of one of the tools."""
    name, arguments = family.keys
    kinds = []
    for index, tool in enumerate(tools):
        place = f"#/anyOf/{index}/properties/{arguments}"
        parameters = _moved(tool.parameters or {"type": "object", "properties": {}}, place)
        kinds.append(
            {
                "type": "object",
                "properties": {name: {"const": tool.name}, arguments: parameters},
                "required": [name, arguments],
                "additionalProperties": False,
            }
        )
    return {"anyOf": kinds}


def _moved(schema: Any, place: str) -> Any:
    """The same schema, when it stands at `place` of another one."""
    if isinstance(schema, list):
        return [_moved(part, place) for part in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, place) for key, value in schema.items()}
    target = schema.get("$ref")
    if isinstance(target, str) and target.startswith("#"):
        moved["$ref"] = place + target[1:]
    return moved


_INSTRUCTIONS = """You may call these functions to help with the user's request:
{tools}
To call one, answer with its name and its arguments as JSON, and nothing else:
<tool_call>
{{"name": "<name>", "arguments": {{...}}}}
</tool_call>"""


def _shown(messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> list[ChatMessage]:
    """The conversation with the tools in its system message."""
    listed = "\n".join(json.dumps(msgspec.to_builtins(tool), ensure_ascii=False) for tool in tools)
    text = _INSTRUCTIONS.format(tools=listed)
    if messages and messages[0].role == "system":
        first = ChatMessage(role="system", content=f"{messages[0].content}\n\n{text}")
        return [first, *messages[1:]]
    return [ChatMessage(role="system", content=text), *messages]


def _as_text(message: ChatMessage) -> ChatMessage:
    """Calls and their results written out, for a template that knows neither."""
    if message.role == "tool":
        return ChatMessage(role="user", content=f"<tool_response>\n{message.content}\n</tool_response>")
    if not message.calls:
        return message
    written = (
        json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
        for call in message.calls
    )
    calls = "\n".join(f"<tool_call>\n{text}\n</tool_call>" for text in written)
    return ChatMessage(role=message.role, content=f"{message.content}\n{calls}".lstrip("\n"))
