"""Answers that need no computing: the same is being computed, or has been.

Which requests are the same is said by a key. Only what would be answered the same again may have one:
requests at temperature 0, or with a seed.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, Generic, Protocol, TypeVar

import anyio
import msgspec
from anyio.abc import TaskGroup

from xnai.agents.inference.errors import InferenceError
from xnai.agents.inference.requests import Answer

T = TypeVar("T")

_WHOLE = ("stop", "length", "tool")
_KEY = 64  # bytes of a key
_ENTRY = 256  # bytes that an entry in memory takes beside its value, roughly

_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder(Answer)


def request_key(model_hash: str, *parts: Any) -> str:
    """The SHA-256, in hex, of a model and of everything else that an answer follows from.

    The parts are what msgspec encodes: the pieces of the rendered prompt, the options.
    """
    return hashlib.sha256(_encoder.encode((model_hash, *parts))).hexdigest()


class _Computation(Generic[T]):
    """What is being computed: what came so far, and who reads it."""

    def __init__(self) -> None:
        self.items: list[T] = []
        self.readers = 0
        self.over = False
        self.error: Exception | None = None
        self.scope = anyio.CancelScope()
        self._news = anyio.Event()

    def tell(self) -> None:
        """Wakes the readers."""
        self._news.set()
        self._news = anyio.Event()

    async def read(self) -> AsyncGenerator[T, None]:
        """All of it from its beginning."""
        at = 0
        while True:
            while at < len(self.items):
                yield self.items[at]
                at += 1
            if self.over:
                break
            await self._news.wait()
        if self.error:
            raise self.error


class SharedComputations(Generic[T]):
    """Requests in flight with the same key are computed once.

    Attributes:
        shared: how many followed another's computation.
    """

    def __init__(self, tasks: TaskGroup) -> None:
        """Computations run in this task group, and end with it."""
        self.shared = 0
        self._tasks = tasks
        self._running: dict[str, _Computation[T]] = {}

    @asynccontextmanager
    async def follow(
        self, key: str, source: Callable[[], AsyncGenerator[T, None]]
    ) -> AsyncIterator[AsyncIterator[T]]:
        """What the source yields, from its beginning, also for whoever comes later.

        The source is called if nothing of this key is being computed. It is closed when everybody has left;
        its error is raised in every reader. A slow reader delays nobody.
        """
        computation = self._running.get(key)
        if computation is None:
            computation = self._running[key] = _Computation()
            self._tasks.start_soon(self._compute, key, computation, source)
        else:
            self.shared += 1
        computation.readers += 1
        try:
            async with aclosing(computation.read()) as items:
                yield items
        finally:
            computation.readers -= 1
            if not computation.readers:
                self._forget(key, computation)
                computation.scope.cancel()

    async def _compute(
        self, key: str, computation: _Computation[T], source: Callable[[], AsyncGenerator[T, None]]
    ) -> None:
        # What the readers see if this task is canceled while they are not.
        computation.error = InferenceError("The agent stopped before the answer was there.")
        try:
            with computation.scope:
                async with aclosing(source()) as items:
                    async for item in items:
                        computation.items.append(item)
                        computation.tell()
                computation.error = None
        except Exception as error:  # raised again in each reader
            computation.error = error
        finally:
            self._forget(key, computation)
            computation.over = True
            computation.tell()

    def _forget(self, key: str, computation: _Computation[T]) -> None:
        if self._running.get(key) is computation:
            del self._running[key]


class Store(Protocol):
    """Bytes under keys for a while. Nothing that goes wrong is an error: it is a miss."""

    async def get(self, key: str) -> bytes | None:
        """What was put under the key, unless it is too old or had to make room."""

    async def put(self, key: str, value: bytes) -> None:
        """Puts a value under a key."""


class MemoryStore:
    """Holds at most `size` bytes, each for at most `ttl` seconds; the least recently used go first."""

    def __init__(self, *, ttl: float, size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.held = 0
        self._ttl, self._size, self._clock = ttl, size, clock
        self._entries: dict[str, tuple[float, bytes]] = {}  # least recently used first

    async def get(self, key: str) -> bytes | None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        end, value = entry
        if end <= self._clock():
            self.held -= _cost(value)
            return None
        self._entries[key] = entry
        return value

    async def put(self, key: str, value: bytes) -> None:
        if old := self._entries.pop(key, None):
            self.held -= _cost(old[1])
        if _cost(value) > self._size:
            return
        self._entries[key] = (self._clock() + self._ttl, value)
        self.held += _cost(value)
        while self.held > self._size:
            _, oldest = self._entries.pop(next(iter(self._entries)))
            self.held -= _cost(oldest)


class AnswerCache:
    """Whole answers, for when exactly the same is asked again.

    Attributes:
        reused: how many came from here.
    """

    def __init__(self, store: Store) -> None:
        self.reused = 0
        self._store = store

    async def get(self, key: str) -> Answer | None:
        """The answer, which says that it is `cached` and took no time; None if there is none."""
        data = await self._store.get(key)
        if data is None:
            return None
        try:
            answer = _decoder.decode(data)
        except msgspec.MsgspecError:  # of another version, or somebody else's
            return None
        self.reused += 1
        return msgspec.structs.replace(answer, cached=True, waited=0.0, first_token=0.0, speed=0.0)

    async def put(self, key: str, answer: Answer) -> None:
        """Remembers an answer, unless it was cut short by anything but its own limits."""
        if answer.finish in _WHOLE:
            await self._store.put(key, _encoder.encode(answer))


def _cost(value: bytes) -> int:
    return _KEY + _ENTRY + len(value)
