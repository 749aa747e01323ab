"""Messages to a prompt, with the template that a model carries."""

import re
from collections.abc import Sequence
from typing import NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from xnai.agents.inference.errors import TemplateFailed
from xnai.agents.inference.requests import ChatMessage

_BREAK = "\ufdd0"  # a code point that Unicode keeps out of all text


class ChatTemplate:
    """Renders messages into pieces of a prompt.

    A template is code out of a file from somewhere, so it runs in Jinja's sandbox (CVE-2024-34359). Contents
    are often somebody else's text: a control word in them is cut in two, and stays mere text.
    """

    def __init__(self, source: str, *, control_words: Sequence[str], begin_word: str, end_word: str) -> None:
        """Raises TemplateFailed if there is no template or it is not valid Jinja."""
        if not source:
            raise TemplateFailed("the model has no chat template: give it a prompt, not messages")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise TemplateFailed(f"the model's chat template is not valid: {error}") from error
        self._words = {"bos_token": begin_word, "eos_token": end_word}
        spelled = "|".join(re.escape(word) for word in control_words if len(word) > 1)
        self._control = re.compile(f"(?=(?:{spelled}))(.)" if spelled else "(?!)", re.DOTALL)

    def render(self, messages: Sequence[ChatMessage]) -> list[str]:
        """The prompt up to where the assistant speaks, in pieces to be turned into tokens one by one.

        Raises TemplateFailed with what the template says against these messages.
        """
        turns = [{"role": message.role, "content": self._defuse(message.content)} for message in messages]
        try:
            text = self._template.render(messages=turns, add_generation_prompt=True, **self._words)
        except Exception as error:  # foreign code: it may divide by zero, recurse, look past an end
            raise TemplateFailed(f"the model's chat template refuses these messages: {error}") from error
        return text.split(_BREAK)

    def _defuse(self, content: str) -> str:
        return self._control.sub(lambda letter: letter[1] + _BREAK, content.replace(_BREAK, ""))


def _refuse(reason: str) -> NoReturn:
    raise TemplateError(reason)
