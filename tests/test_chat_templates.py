"""Prompts from templates in the shapes of real families, and templates that mean harm."""

# ruff: noqa: E501 - templates and what comes of them are shown as they are

from __future__ import annotations

import json

import pytest

from xnai.agents.inference.chat import ChatTemplate
from xnai.agents.inference.errors import TemplateFailed
from xnai.agents.inference.requests import ChatMessage, Tool, ToolCall

TALK = [
    ChatMessage(role="system", content="Be brief."),
    ChatMessage(role="user", content="Hi <b>'é'</b>"),
    ChatMessage(
        role="assistant", calls=(ToolCall(name="add", arguments={"a": 1, "b": [2]}, id="call00001"),)
    ),
    ChatMessage(role="tool", content="3", call="call00001", name="add"),
]
ADD = Tool(
    name="add",
    description="Adds <two>",
    parameters={"type": "object", "properties": {"a": {"type": "integer"}}},
)

HERMES = """
{%- if tools %}{{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
    {{- "# Tools\n<tools>" }}
    {%- for tool in tools %}{{- "\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\n</tools><|im_end|>\n" }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- if message.role == "user" and message.content is string %}{%- set ns.last = messages|length - 1 - loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' ~ message.role }}
        {%- generation %}
        {%- for call in message.tool_calls or [] %}
            {%- set call = call.function if call.function else call %}
            {{- '\n<tool_call>\n{"name": "' ~ call.name ~ '", "arguments": ' ~ (call.arguments | tojson) ~ '}\n</tool_call>' }}
        {%- endfor %}
        {%- endgeneration %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\n<tool_response>\n' ~ message.content ~ '\n</tool_response><|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""
LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{%- macro header(role) %}<|start_header_id|>{{ role }}<|end_header_id|>

{% endmacro %}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- if message.tool_calls|length != 1 %}{{- raise_exception("one call at a time") }}{%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- header('assistant') ~ '{"name": "' + call.name + '", "parameters": ' ~ call.arguments|tojson ~ "}<|eot_id|>" }}
    {%- elif message.role == "tool" %}
        {{- header('ipython') ~ message.content|tojson ~ "<|eot_id|>" }}
    {%- else %}
        {{- header(message['role']) ~ message['content'] | trim ~ '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{{- header('assistant') if add_generation_prompt }}"""
STRICT = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
{{- '[INST] ' ~ message['content'] | trim ~ ' [/INST]' if message.role == 'user' else message.content ~ eos_token }}
{%- endfor %}"""


def template(source: str, *, control: tuple[str, ...] = ("<|im_start|>", "<|im_end|>")) -> ChatTemplate:
    return ChatTemplate(source, control_words=control, begin_word="<s>", end_word="</s>")


def text(source: str, *messages: ChatMessage, tools: tuple[Tool, ...] = ()) -> str:
    return "".join(template(source, control=()).render(messages, tools=tools))


def test_the_shape_of_hermes_and_qwen() -> None:
    assert text(HERMES, *TALK, tools=(ADD,)) == (
        "<|im_start|>system\nBe brief.\n\n# Tools\n<tools>\n"
        '{"type": "function", "function": {"name": "add", "description": "Adds <two>", "parameters": '
        '{"type": "object", "properties": {"a": {"type": "integer"}}}}}\n</tools><|im_end|>\n'
        "<|im_start|>user\nHi <b>'é'</b><|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2]}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_shape_of_llama() -> None:
    assert text(LLAMA, *TALK).startswith(
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    )
    assert '{"name": "add", "parameters": {"a": 1, "b": [2]}}<|eot_id|>' in text(LLAMA, *TALK)
    assert text(LLAMA, *TALK).endswith('"3"<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n')


def test_a_template_without_a_system_role_gets_it_in_front_of_the_user() -> None:
    assert text(STRICT, *TALK[:2]) == "<s>[INST] Be brief.\n\nHi <b>'é'</b> [/INST]"


def test_what_a_template_says_against_messages_is_in_the_error() -> None:
    with pytest.raises(TemplateFailed, match="Roles must alternate"):
        template(STRICT).render([TALK[1], TALK[1]])


def test_whether_a_template_knows_tools() -> None:
    assert template(HERMES).knows_tools
    assert not template(STRICT).knows_tools


def test_what_the_assistant_has_begun_stands_at_the_end() -> None:
    assert template(HERMES).render(TALK[:2], begun="<tool_call>")[-1].endswith("assistant\n<tool_call>")


def test_control_words_stay_text_wherever_others_wrote_them() -> None:
    word = "<|im_end|>"
    call = ToolCall(name="add", arguments={word: [f"x{word}"]}, id="1")
    messages = [
        ChatMessage(role="user", content=f"a{word}b\ufdd0{word}"),
        ChatMessage(role="assistant", calls=(call,)),
        ChatMessage(role="tool", content=word, call="1"),
    ]
    tool = Tool(
        name="add", description=word, parameters={"type": "object", "properties": {word: {"title": word}}}
    )
    pieces = template(HERMES).render(messages, tools=[tool])
    assert sum(piece.count(word) for piece in pieces) == 4  # of the template's own
    assert "".join(pieces).count(word) == 4 + 8


def test_tojson_is_what_templates_expect() -> None:
    source = "{{ messages|tojson }}{{ {'b': 1, 'a': 2}|tojson(indent=2) }}{{ [1, 2]|tojson(separators=(',', ':')) }}"
    user = ChatMessage(role="user", content="<é'&>")
    expected = json.dumps([{"role": "user", "content": "<é'&>"}], ensure_ascii=False)
    assert text(source, user) == f'{expected}{{\n  "b": 1,\n  "a": 2\n}}[1,2]'


def test_a_long_conversation_is_rendered() -> None:
    messages = [ChatMessage(role="user", content="word " * 20_000)] + [
        ChatMessage(role="user", content="x")
    ] * 2000
    assert len(text(HERMES, *messages, tools=(ADD,) * 50)) > 100_000


HOSTILE = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "filtered loops": "{% for a in range(99999) if range(99999)|sum == 1 %}{% endfor %}",
    "recursive loop": "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "macros": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
    "doubled text": "{% set n = namespace(x='a') %}{% for i in range(70) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "added text": "{% set n = namespace(x='a') %}{% for i in range(70) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubled list": "{% set n = namespace(x=[1]) %}{% for i in range(70) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "doubled key": "{% set n = namespace(x=(1,)) %}{% for i in range(70) %}{% set n.x = (n.x, n.x) %}{% endfor %}{{ {n.x: 1} }}",
    "compared": "{% set n = namespace(x=[1]) %}{% for i in range(70) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x == n.x }}",
    "block of text": "{% set x = 'aaaa' * 9 %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60,
    "times": "{{ 'a' * 9999999999 }}",
    "power": "{{ 10 ** 9999999999 }}",
    "product": "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "percent": "{{ '%9999999999d' % 1 }}",
    "format": "{{ '{:9999999999}'.format(1) }}",
    "center": "{{ 'a'.center(9999999999) }}",
    "filter": "{{ 'a'|center(9999999999) }}",
    "bytes": "{{ (5).to_bytes(9999999999, 'big') }}",
    "replace": "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
    "replace filter": "{{ ('a' * 99999)|replace('a', 'b' * 99999) }}",
    "join": "{{ range(99999)|join('a' * 99999) }}",
    "join method": "{{ ('a' * 99999).join(range(99999)|map('string')) }}",
    "indent": "{{ 'a'|indent(9999999999) }}",
    "date": "{{ strftime_now('%9999999999d') }}",
    "json": "{{ [1]|tojson(indent=9999999999) }}",
    "lipsum": "{{ lipsum(n=99999) }}",
    "attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ namespace.__init__.__globals__ }}",
    "globals of a class": "{{ cycler.__init__.__globals__.os.system('true') }}",
    "division": "{{ 1 // 0 }}",
    "half a character": r"{{ '\ud800' }}",
    "half a character in an error": r"{{ raise_exception('\ud800') }}",
    "past the end": "{{ messages[9].content.text }}",
    "file": "{% include '/etc/passwd' %}",
    "mutation": "{{ messages.append(1) }}",
    "not Jinja": "{% if %}",
    "deep": "{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}",
    "blocks": "{% if 1 %}" * 900 + "{% endif %}" * 900,
    "long": "a" * 200_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_an_error_soon(name: str) -> None:
    with pytest.raises(TemplateFailed, match="the model's chat template") as refused:
        text(HOSTILE[name], *TALK)
    assert str(refused.value).encode()


def test_a_model_without_a_template_takes_prompts_only() -> None:
    with pytest.raises(TemplateFailed, match="give it a prompt"):
        template("")
