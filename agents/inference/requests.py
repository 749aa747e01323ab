"""What is asked of the inference agent, and what it answers. Whoever asks needs nothing but this module."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

MINILM = "all-MiniLM-L6-v2"
"""The name of the default embedding model."""

Finish = Literal["stop", "length", "tool", "incomplete", "canceled", "deadline"]
"""Why an answer ended: by the model or a stop string; by `max_tokens` or the end of the context; with a call
of a tool; as "length", and what was asked for is not complete; because nobody wants it any more; in time."""


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the model wants called, with its arguments."""

    name: str
    arguments: dict[str, Any]
    id: str = ""


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One turn of a conversation.

    Attributes:
        calls: of an assistant: what it wanted called.
        call: of a tool: the id of the call that this is the result of.
        name: of the tool.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    calls: tuple[ToolCall, ...] = ()
    call: str | None = None
    name: str | None = None


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the model may ask for. `parameters` is a JSON Schema of an object."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A token of an answer, with the natural logarithm of its probability before any sampling option.

    `top` are the likeliest tokens in its place, each with its own.
    """

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


class Embeddings(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `inference.embed`.

    Attributes:
        model: which model made them. Vectors of two models cannot be compared.
        vectors: one per text, in their order, each of length 1 and of as many numbers as the model has
            dimensions.
    """

    model: str
    vectors: list[list[float]]


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Request of `inference.generate`: a prompt, in which control words of the model count, or messages.

    Attributes:
        model: by its name in the settings; without one the first.
        max_tokens: the longest answer.
        temperature: 0 for the likeliest token each time.
        top_p: tokens that are less likely than these together are never chosen.
        top_k: only so many of the likeliest are chosen from; 0 for all.
        min_p: nor what is less likely than this share of the likeliest.
        repeat_penalty, frequency_penalty, presence_penalty: against the last 64 tokens; 1, 0, 0 are off.
        seed: of the choice; without one it follows from the task's id.
        stop: texts before which the answer ends.
        json_schema, regex, grammar: what the answer must look like; one of them. A grammar is GBNF.
        logprobs: how many likely tokens to name for each that was chosen, 0 to 20; None for none at all.
        tools: functions that the model may ask for; messages only.
        tool_choice: "auto", "none", "required", or the name of the one to call.
        cache: whether what was computed for the prompt may be used again.
        pin: keep that longer than of other prompts: the beginning is one that many requests share.
        truncate: what to leave out of a prompt that is longer than the context: its "start", or its "middle".
            Without it such a prompt is refused.
    """

    prompt: str | None = None
    messages: tuple[ChatMessage, ...] = ()
    model: str | None = None
    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    json_schema: dict[str, Any] | bool | None = None
    regex: str | None = None
    grammar: str | None = None
    logprobs: int | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    cache: bool = True
    pin: bool = False
    truncate: Literal["start", "middle"] | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `inference.generate`: what a call gets, and what a stream ends with.

    Attributes:
        text: the whole text, without the stop string and without calls of tools.
        finish: why it ended.
        model, hash: the name of the model, and the SHA-256 of its file.
        tokens_in, tokens_cached, tokens_out: of the prompt, of it found in the cache, of the answer.
        waited: seconds until the first computation.
        first_token: seconds until the first token.
        speed: tokens a second from there on; 0 for an answer of one token.
        calls: the tools that the model wants called.
        value: what a text asked for by a JSON Schema says.
        logprobs: for each token, if asked for.
        cached: nothing was computed: the same was asked before.
    """

    text: str
    finish: Finish
    model: str
    hash: str
    tokens_in: int
    tokens_cached: int
    tokens_out: int
    waited: float = 0.0
    first_token: float = 0.0
    speed: float = 0.0
    calls: tuple[ToolCall, ...] = ()
    value: Any = None
    logprobs: tuple[TokenLogprob, ...] = ()
    cached: bool = False


class CountRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Request of `inference.tokenize` and `inference.count`: a text, or messages as a model reads them."""

    text: str | None = None
    messages: tuple[ChatMessage, ...] = ()
    model: str | None = None


class LoadedModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model of the settings.

    Attributes:
        name: by which requests ask for it.
        kind: whether it makes text or vectors.
        loaded: whether the engine holds it now.
        context: tokens of prompt and answer together.
        dimensions: of its vectors.
        slots: sequences that compute at the same time.
        hash: the SHA-256 of its file; "" before it was first loaded.
        weights, kv, buffers: bytes of memory.
        prefill, decode: measured tokens a second, of prompts and of one answer; 0 for not yet.
    """

    name: str
    kind: Literal["generate", "embed"]
    loaded: bool
    context: int = 0
    dimensions: int = 0
    slots: int = 0
    hash: str = ""
    weights: int = 0
    kv: int = 0
    buffers: int = 0
    prefill: float = 0.0
    decode: float = 0.0


class Models(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `inference.models`.

    Attributes:
        embedding: the name of the model that embeds.
        dimensions: of its vectors.
        generation: the name of the model that generates unless another is asked for; None without any.
        context: tokens that fit into that one, prompt and answer together; 0 without it.
        models: all of them.
    """

    embedding: str
    dimensions: int
    generation: str | None = None
    context: int = 0
    models: tuple[LoadedModel, ...] = ()


class InferenceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `inference.status`.

    Attributes:
        running, waiting, paused: requests. waiting_tokens: of the prompts of those that wait.
        slots: sequences that may compute now. threads: in use now.
        prefill, decode: tokens a second, measured lately; 0 for not yet.
        answered, refused: requests since the start. generated: tokens of answers since then.
        prompts, prompt_hits, prompt_tokens, hit_tokens: prompts since then, those that found more than a
            token in the cache, and their tokens.
        shared, reused: answers that another request in flight, or an earlier one, had computed already.
        memory: bytes that the engine holds. restarts: of the engine.
        load: the share of the last seconds in which the engine computed, 0 to 1.
    """

    running: int = 0
    waiting: int = 0
    paused: int = 0
    waiting_tokens: int = 0
    slots: int = 0
    threads: int = 0
    prefill: float = 0.0
    decode: float = 0.0
    answered: int = 0
    refused: int = 0
    generated: int = 0
    prompts: int = 0
    prompt_hits: int = 0
    prompt_tokens: int = 0
    hit_tokens: int = 0
    shared: int = 0
    reused: int = 0
    memory: int = 0
    restarts: int = 0
    load: float = 0.0
