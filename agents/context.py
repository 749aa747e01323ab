"""What a handler knows about the task in its hands, and what it may do with it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar, overload

import msgspec

from xnai.bus.bus import CALL_TIMEOUT, STREAM_TIMEOUT
from xnai.protocol.envelope import Envelope

if TYPE_CHECKING:
    from xnai.agents.run import Run

T = TypeVar("T")


class Context:
    """One attempt at one task.

    Attributes:
        task: the envelope: id, context, sender, lane, message and the rest.
        attempt: 1 for the first; above 1 the task may have run before, wholly or in part.
        deadline: seconds since the epoch.
        state: what the agent's lifespan yielded.
    """

    def __init__(self, run: Run, state: Any) -> None:
        self.state = state
        self._run = run

    @property
    def task(self) -> Envelope:
        return msgspec.structs.replace(self._run.task, message=self._run.request)

    @property
    def attempt(self) -> int:
        return self._run.attempt

    @property
    def deadline(self) -> float:
        return self._run.deadline

    @property
    def time_left(self) -> float:
        """Seconds until the deadline; 0 once it has passed."""
        return max(0.0, self.deadline - time.time())

    async def progress(self, text: str) -> None:
        """Say where the work stands. On return it is stored in the task's log.

        Raises:
            Unavailable: the broker did not confirm it.
        """
        await self._run.reporter.progress(text)

    async def artifact(self, name: str, value: object) -> None:
        """Add a named result beside the returned value. On return it is stored in the task's log.

        Raises:
            InvalidPayload: the value cannot be sent.
            Unavailable: the broker did not confirm it.
        """
        await self._run.reporter.artifact(name, value)

    @overload
    async def call(
        self, to: str, payload: object, returns: type[T], *, timeout: float = ..., name: str | None = ...
    ) -> T: ...
    @overload
    async def call(
        self, to: str, payload: object = ..., *, timeout: float = ..., name: str | None = ...
    ) -> Any: ...
    async def call(
        self,
        to: str,
        payload: object = None,
        returns: Any = Any,
        *,
        timeout: float = CALL_TIMEOUT,
        name: str | None = None,
    ) -> Any:
        """Ask another agent, as a part of this task.

        The sub-task's id follows from this task's id, the skill and the payload (or `name`), so a later
        attempt finds the same one. It inherits the context, the lane, and the deadline if that is sooner, and
        is canceled with this task. Raises as `Bus.call` does.
        """
        return await self._run.children.call(to, payload, returns, timeout=timeout, name=name)

    @overload
    def stream(
        self, to: str, payload: object, returns: type[T], *, timeout: float = ..., name: str | None = ...
    ) -> AsyncGenerator[T, None]: ...
    @overload
    def stream(
        self, to: str, payload: object, returns: UnionType, *, timeout: float = ..., name: str | None = ...
    ) -> AsyncGenerator[Any, None]: ...
    async def stream(
        self,
        to: str,
        payload: object,
        returns: Any,
        *,
        timeout: float = STREAM_TIMEOUT,
        name: str | None = None,
    ) -> AsyncGenerator[Any, None]:
        """What another agent yields, as a part of this task; otherwise as `call`."""
        chunks = self._run.children.stream(to, payload, returns, timeout=timeout, name=name)
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk
