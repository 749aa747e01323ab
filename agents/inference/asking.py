"""From a request to the frame that the engine gets: every option checked, messages rendered."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import msgspec

from xnai.agents.inference.calls import CallReader
from xnai.agents.inference.catalogue import Model
from xnai.agents.inference.frames import Generate, Lane, Rule, Sampling
from xnai.agents.inference.requests import Answer, ChatMessage, GenerateRequest
from xnai.agents.inference.reusing import request_key
from xnai.agents.inference.schemas import check_answer, grammar_rule, regex_rule, schema_rule
from xnai.agents.inference.tools import Offer, offer_tools
from xnai.protocol.envelope import Envelope
from xnai.protocol.errors import InvalidPayload

LANES: dict[str, Lane] = {"urgent": 0, "normal": 1, "background": 2}
MOST_STOPS, LONGEST_STOPS = 64, 4_096
"""Stop strings of a request, and characters of all of them together."""

_SEEDS = (1 << 32) - 1  # one less than there are: llama.cpp takes the last to mean "any seed"
_MARGIN, _SHARE = 0.5, 0.1  # seconds, and of what is left: what the outcome takes once the engine has ended


class Asked(msgspec.Struct, frozen=True):
    """What the engine is asked, and what reads calls of tools out of its answer; None if it may call none."""

    frame: Generate
    reader: CallReader | None


def read_request(
    request: GenerateRequest, model: Model, task: Envelope, *, weight: float, left: float
) -> Asked:
    """What the engine is asked for a request whose task has `left` seconds.

    Raises:
        InvalidPayload: an option is out of its range, or contradicts another.
        RuleInvalid: what the answer must look like cannot be kept.
        TemplateFailed: the model's template refuses the messages.
    """
    check_options(request)
    offer = _offer(request, model)
    rule = rule_of(request)
    if rule and offer.rule:
        raise InvalidPayload(f"A tool that must be called and a {rule.kind} exclude each other.")
    pieces = tuple(offer.pieces)
    frame = Generate(
        0,
        model.name,
        pieces,
        begins(pieces, model),
        request.max_tokens,
        sampling=Sampling(
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            min_p=request.min_p,
            # A later attempt has to say the same again, or whoever reads the stream could not go on with it.
            seed=_seed(task.id) if request.seed is None else request.seed,
            repeat_penalty=request.repeat_penalty,
            frequency_penalty=request.frequency_penalty,
            presence_penalty=request.presence_penalty,
        ),
        stop=request.stop,
        rule=rule or offer.rule,
        alternatives=request.logprobs,
        sender=task.sender,
        lane=LANES[task.lane],
        weight=weight,
        deadline=left - min(_MARGIN, _SHARE * left),
        cache=request.cache,
        pin=request.pin,
        truncate=request.truncate or "",
        shown=offer.shown,
    )
    return Asked(frame, offer.reader)


def _offer(request: GenerateRequest, model: Model) -> Offer:
    if request.prompt is None and request.messages:
        return offer_tools(
            model.template,
            request.messages,
            request.tools,
            choice=request.tool_choice,
            max_tokens=request.max_tokens,
        )
    if request.tools:
        raise InvalidPayload("Tools go with messages: a prompt is taken as it is.")
    return Offer(pieces=list(prompt_pieces(request.prompt, request.messages, model)))


def same_answer(request: GenerateRequest, frame: Generate, model: Model) -> str | None:
    """A key that requests share which have the same answer; None for one that may be answered otherwise."""
    if not request.cache or (request.temperature and request.seed is None):
        return None
    sampling = frame.sampling if request.temperature else Sampling()
    penalties = (request.repeat_penalty, request.frequency_penalty, request.presence_penalty)
    options = (
        frame.max_tokens,
        sampling,
        penalties,
        frame.stop,
        frame.rule,
        frame.alternatives,
        frame.truncate,
    )
    tools = (request.tools, request.tool_choice)
    return request_key(model.hash, model.frame.context, frame.pieces, frame.begin, options, tools)


def completed(answer: Answer, request: GenerateRequest) -> Answer:
    """A finished answer with the value that it says, where a schema was given.

    Raises:
        AnswerInvalid: it breaks the schema.
    """
    if request.json_schema is None or answer.finish != "stop":
        return answer
    return msgspec.structs.replace(answer, value=check_answer(request.json_schema, answer.text))


def prompt_pieces(prompt: str | None, messages: Sequence[ChatMessage], model: Model) -> tuple[str, ...]:
    """The prompt, or the messages by the model's template.

    Raises:
        InvalidPayload: it is both, or neither.
        TemplateFailed: there is no template, or it refuses the messages.
    """
    if (prompt is None) == (not messages):
        raise InvalidPayload("Give either a prompt or messages.")
    return (prompt,) if prompt is not None else tuple(model.template.render(messages))


def begins(pieces: Sequence[str], model: Model) -> bool:
    """Whether the token that begins a text is to be put in front: not where the template has done it."""
    word = model.opened.begin_word if model.opened else ""
    return not (word and pieces and pieces[0].startswith(word))


def rule_of(request: GenerateRequest) -> Rule | None:
    """What the answer must look like.

    Raises:
        InvalidPayload: it is said twice.
        RuleInvalid: it cannot be kept.
    """
    rules: list[Rule] = []
    if request.json_schema is not None:
        rules.append(schema_rule(request.json_schema, max_tokens=request.max_tokens))
    if request.regex is not None:
        rules.append(regex_rule(request.regex))
    if request.grammar is not None:
        rules.append(grammar_rule(request.grammar))
    if len(rules) > 1:
        raise InvalidPayload("Give one of json_schema, regex and grammar.")
    return rules[0] if rules else None


def check_options(request: GenerateRequest) -> None:
    """Raises InvalidPayload for an option that is out of its range."""
    if request.max_tokens < 1:
        raise InvalidPayload("max_tokens must be at least 1")
    for name, least, most in (
        ("temperature", 0, 100),
        ("min_p", 0, 1),
        ("repeat_penalty", 0, 100),
        ("frequency_penalty", -100, 100),
        ("presence_penalty", -100, 100),
        ("top_k", 0, math.inf),
    ):
        if not least <= getattr(request, name) <= most:
            bound = f"from {least} to {most}" if most < math.inf else f"at least {least}"
            raise InvalidPayload(f"{name} must be {bound}")
    if not 0 < request.top_p <= 1:
        raise InvalidPayload("top_p must be above 0 and at most 1")
    if request.repeat_penalty == 0:
        raise InvalidPayload("repeat_penalty must be above 0")
    if request.seed is not None and not 0 <= request.seed < _SEEDS:
        raise InvalidPayload(f"seed must be from 0 to {_SEEDS - 1}")
    if request.logprobs is not None and not 0 <= request.logprobs <= 20:
        raise InvalidPayload("logprobs must be from 0 to 20")
    check_stops(request.stop)


def check_stops(stop: Sequence[str]) -> None:
    """Raises InvalidPayload for stop strings that are empty, too many or too long."""
    if isinstance(stop, str) or not all(stop):
        raise InvalidPayload("stop must be a list of strings that are not empty")
    if len(stop) > MOST_STOPS or sum(map(len, stop)) > LONGEST_STOPS:
        raise InvalidPayload(f"stop may be {MOST_STOPS} strings of {LONGEST_STOPS} characters together")


def _seed(id: str) -> int:
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:3])
