"""Answers while they are computed: what the engine says, put together; what is the same computed once."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

import anyio
import msgspec
from anyio.abc import TaskGroup

from xnai.agents.inference.asking import Asked
from xnai.agents.inference.calls import CallReader
from xnai.agents.inference.catalogue import Model
from xnai.agents.inference.engine_client import Engine
from xnai.agents.inference.engine_requests import Said
from xnai.agents.inference.errors import AnswerInvalid
from xnai.agents.inference.frames import Done, Generate, Queued, Text
from xnai.agents.inference.requests import Answer, Finish, TokenLogprob
from xnai.agents.inference.reusing import AnswerCache, SharedComputations

Tell = Callable[[Queued | None], None]
_CUT_SHORT = ("deadline", "canceled")


class Answers:
    """Gives answers, by the engine or from where one is already.

    Attributes:
        shared, reused: how many were computed for another request, in flight or before.
    """

    def __init__(self, engine: Engine, cache: AnswerCache | None, tasks: TaskGroup) -> None:
        self._engine, self._cache = engine, cache
        self._sharing: SharedComputations[Said] = SharedComputations(tasks)

    @property
    def shared(self) -> int:
        return self._sharing.shared

    @property
    def reused(self) -> int:
        return self._cache.reused if self._cache else 0

    async def stream(
        self,
        asked: Asked,
        model: Model,
        key: str | None,
        *,
        tell: Tell,
        complete: Callable[[Answer], Answer],
    ) -> AsyncGenerator[str | Answer, None]:
        """The pieces of an answer, and then the whole of it.

        Args:
            key: what requests with the same answer share; None for one of its own.
            tell: hears where in the queue it stands, None once it is computed.
            complete: looks at the whole answer before it is given.

        Raises what `complete` raises, Reject if it is refused, InferenceError if it failed.
        """
        if key and self._cache and (known := await self._cache.get(key)):
            if known.text:
                yield known.text
            yield known
            return
        frame, reader = asked.frame, asked.reader
        pieces: list[str] = []
        logprobs: list[TokenLogprob] = []
        done: Done | None = None
        async with aclosing(self._said(frame, key)) as frames:
            async for said in frames:
                if isinstance(said, Text):
                    tell(None)
                    logprobs += said.logprobs
                    text = reader.push(said.text) if reader else said.text
                    if text:
                        pieces.append(text)
                        yield text
                elif isinstance(said, Queued):
                    tell(said)
                else:
                    done = said
        assert done is not None  # an answer without an end is an error of the engine's
        if rest := _rest(reader, done):
            pieces.append(rest)
            yield rest
        answer = _answer(done, frame, model, text="".join(pieces), logprobs=tuple(logprobs))
        if reader and reader.calls:
            answer = msgspec.structs.replace(answer, finish="tool", calls=tuple(reader.calls))
        answer = complete(answer)
        if key and self._cache:
            await self._cache.put(key, answer)
        yield answer

    async def _said(self, frame: Generate, key: str | None) -> AsyncGenerator[Said, None]:
        """What the engine says about this request, or about another one with the same answer.

        Where that one is cut short, by its own deadline, this one goes on behind it.
        """
        ends = time.monotonic() + frame.deadline if frame.deadline is not None else None
        said: list[int] = []
        if key:
            own = False

            def begin() -> AsyncGenerator[Said, None]:
                nonlocal own
                own = True
                return self._engine.generate(frame)

            async with self._sharing.follow(f"{frame.lane} {key}", begin) as others:
                while (item := await _next(others, ends)) is not None:
                    if isinstance(item, Done) and item.finish in _CUT_SHORT and not own:
                        break
                    yield item
                    if isinstance(item, Done):
                        return
                    if isinstance(item, Text):
                        said += item.tokens
            if ends is not None and ends <= time.monotonic():
                yield Done(0, "deadline", tokens_out=len(said))
                return
            left = None if ends is None else ends - time.monotonic()
            frame = msgspec.structs.replace(frame, said=tuple(said), deadline=left)
        async with aclosing(self._engine.generate(frame)) as items:
            async for each in items:
                yield each


async def _next(items: AsyncIterator[Said], ends: float | None) -> Said | None:
    """The next of them; None if there is none in time. Whoever asked first has a deadline of its own."""
    with anyio.move_on_after(None if ends is None else max(0.0, ends - time.monotonic()) + _GRACE):
        return await anext(items, None)
    return None


_GRACE = 0.1  # seconds in which the engine itself says that the time is over


def _rest(reader: CallReader | None, done: Done) -> str:
    """What is left of the text, now that no call can follow. Raises AnswerInvalid for a call that is none."""
    if reader is None:
        return ""
    try:
        return reader.finish()
    except AnswerInvalid:
        if done.finish == "stop":
            raise
        return ""  # a call that had to come was cut off


def _answer(
    done: Done, frame: Generate, model: Model, *, text: str, logprobs: tuple[TokenLogprob, ...]
) -> Answer:
    finish: Finish = "incomplete" if frame.rule and done.finish == "length" else done.finish
    return Answer(
        text=text,
        finish=finish,
        model=model.name,
        hash=model.hash,
        tokens_in=done.tokens_in,
        tokens_cached=done.tokens_cached,
        tokens_out=done.tokens_out,
        waited=done.waited,
        first_token=done.first,
        speed=(done.tokens_out - 1) / done.took if done.took > 0 else 0.0,
        logprobs=logprobs,
    )
