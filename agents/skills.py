"""Reading a handler's signature: its type annotations are the schema of the skill."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

from xnai.agents.context import Context
from xnai.protocol.errors import InvalidAgent, InvalidPayload
from xnai.protocol.names import check_name
from xnai.protocol.payload import Codec, Whole, codec_of, is_union

HARD_CAP = 900.0
MAX_ATTEMPTS = 5
COALESCE = 0.05  # seconds
_STREAMS = (AsyncIterator, AsyncGenerator, AsyncIterable)


class Backoff(msgspec.Struct, frozen=True, kw_only=True):
    """How long to wait before the next attempt: `first` seconds, times `factor` each time, at most `most`."""

    first: float = 1.0
    factor: float = 4.0
    most: float = 60.0

    def ceiling(self, attempt: int) -> float:
        """The longest wait after `attempt`, in seconds; the wait itself is drawn between 0 and it."""
        return float(min(self.most, self.first * self.factor ** min(attempt - 1, 32)))


class Skill(msgspec.Struct, frozen=True, kw_only=True):
    """One thing an agent can do.

    Attributes:
        handler: the author's function.
        accepts: reads the payload; None when the handler takes none.
        returns: writes the answer, or each chunk of it.
        whole: writes the answer that follows the chunks; None where it is the chunks joined.
        context: the name of the parameter that gets the Context; None when there is none.
        payload: the name of the parameter that gets the payload; None when there is none.
        streams, threaded: whether it yields chunks, and whether it runs in a worker thread.
        max_attempts, backoff: how often to try, and how long to wait in between.
        cap: seconds after which an attempt is stopped whatever it does.
        coalesce: chunks that are yielded within so many seconds are stored as one event.
    """

    name: str
    handler: Callable[..., Any]
    description: str
    tags: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    accepts: Codec[Any] | None
    returns: Codec[Any]
    whole: Codec[Any] | None
    context: str | None
    payload: str | None
    streams: bool
    threaded: bool
    max_attempts: int = MAX_ATTEMPTS
    backoff: Backoff = Backoff()
    cap: float = HARD_CAP
    coalesce: float = COALESCE

    def arguments(self, payload: Any, context: Context) -> dict[str, Any]:
        """What to call the handler with."""
        given: dict[str, Any] = {}
        if self.payload is not None:
            given[self.payload] = payload
        if self.context is not None:
            given[self.context] = context
        return given


def read_skill(
    handler: Callable[..., Any],
    *,
    name: str | None = None,
    tags: tuple[str, ...] = (),
    examples: tuple[str, ...] = (),
    max_attempts: int = MAX_ATTEMPTS,
    backoff: Backoff | None = None,
    cap: float = HARD_CAP,
    coalesce: float = COALESCE,
) -> Skill:
    """The skill that `handler` is.

    Raises:
        InvalidAgent: its signature cannot be served, and why.
    """
    name = check_name(name or handler.__name__, "skill name")
    if inspect.isgeneratorfunction(handler):
        raise InvalidAgent(f"Skill {name}: a plain generator would block the loop; write async def … yield.")
    if max_attempts < 1 or cap <= 0 or coalesce < 0:
        raise InvalidAgent(
            f"Skill {name}: it needs an attempt at least, more than 0 s for it, and a coalesce from 0 on."
        )
    hints = _hints(handler, name)
    payload, context = _parameters(handler, hints, name)
    streams = inspect.isasyncgenfunction(handler)
    returns, whole = _answer(hints, name, streams=streams)
    return Skill(
        name=name,
        handler=handler,
        description=inspect.getdoc(handler) or "",
        tags=tags,
        examples=examples,
        accepts=None if payload is None else _codec(hints.get(payload, Any), name),
        returns=_codec(returns, name),
        whole=whole,
        context=context,
        payload=payload,
        streams=streams,
        threaded=not streams and not inspect.iscoroutinefunction(handler),
        max_attempts=max_attempts,
        backoff=backoff or Backoff(),
        cap=cap,
        coalesce=coalesce,
    )


def _hints(handler: Callable[..., Any], name: str) -> dict[str, Any]:
    try:
        return get_type_hints(handler, include_extras=True)
    except (NameError, TypeError, AttributeError) as error:
        raise InvalidAgent(
            f"Skill {name}: its annotations cannot be read ({error}). Use types that its module knows."
        ) from error


def _parameters(
    handler: Callable[..., Any], hints: dict[str, Any], name: str
) -> tuple[str | None, str | None]:
    """The names of the parameters for the payload and for the Context."""
    context: str | None = None
    payloads = []
    for parameter in inspect.signature(handler).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise InvalidAgent(f"Skill {name}: {parameter} cannot be filled from a message.")
        if hints.get(parameter.name) is Context:
            context = parameter.name
        else:
            payloads.append(parameter.name)
    if len(payloads) > 1:
        raise InvalidAgent(
            f"Skill {name} takes {', '.join(payloads)}: a task has one payload, so put them into one type."
        )
    return (payloads[0] if payloads else None), context


def _answer(hints: dict[str, Any], name: str, *, streams: bool) -> tuple[Any, Codec[Any] | None]:
    """The type of the answer or of its chunks, and the codec of the whole behind them."""
    answer = hints.get("return", Any)
    if not streams:
        return answer, None
    if get_origin(answer) not in _STREAMS:
        return Any, None
    chunk = get_args(answer)[0]
    kinds = get_args(chunk) if is_union(chunk) else (chunk,)
    wholes = [kind for kind in kinds if kind is Whole or get_origin(kind) is Whole]
    if not wholes:
        return chunk, None
    pieces = tuple(kind for kind in kinds if kind not in wholes)
    if len(wholes) > 1 or not pieces:
        raise InvalidAgent(
            f"Skill {name}: it yields chunks and one Whole, AsyncIterator[str | Whole[Answer]]."
        )
    return functools.reduce(operator.or_, pieces), _codec((get_args(wholes[0]) or (Any,))[0], name)


def _codec(type: Any, name: str) -> Codec[Any]:
    try:
        return codec_of(type)
    except InvalidPayload as error:
        raise InvalidAgent(f"Skill {name}: {error}") from error
