"""Sub-tasks: what a handler asks of other agents, found again by a later attempt."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import msgspec

from xnai.bus.bus import Bus
from xnai.bus.sending import Order
from xnai.protocol.a2a import Part, TaskState
from xnai.protocol.envelope import Envelope, encode
from xnai.protocol.names import id_of

if TYPE_CHECKING:
    from xnai.agents.run import Run

_SHORTEST = 0.001


def child_id(parent: Envelope, to: str, key: str, *, nth: int, again: int) -> str:
    """The id of the same sub-task in every attempt at its parent.

    `key` is the name given, or the hash of the payload; `nth` counts equal ones; `again` how often one
    that did not complete was asked anew. Two senders may give their tasks the same id: that of the sender
    is in it too.
    """
    words = (parent.sender, parent.id, to, key, str(nth), str(again))
    return id_of(hashlib.sha256("\n".join(words).encode()).digest())


class Children:
    """The sub-tasks of one attempt."""

    def __init__(self, bus: Bus, run: Run) -> None:
        self._bus, self._run = bus, run
        self._seen: Counter[tuple[str, str]] = Counter()

    async def call(self, to: str, payload: object, returns: Any, *, timeout: float, name: str | None) -> Any:
        order = await self._order(to, payload, timeout=timeout, name=name)
        return await self._bus.answer(await self._bus.run(order, abandon=self._abandons), returns)

    async def stream(
        self, to: str, payload: object, returns: Any, *, timeout: float, name: str | None
    ) -> AsyncGenerator[Any, None]:
        order = await self._order(to, payload, timeout=timeout, name=name)
        async with aclosing(self._bus.run_stream(order, returns, abandon=self._abandons)) as chunks:
            async for chunk in chunks:
                yield chunk

    def _abandons(self) -> bool:
        return self._run.cancels_children

    async def _order(self, to: str, payload: object, *, timeout: float, name: str | None) -> Order:
        task = self._run.task
        left = max(_SHORTEST, self._run.deadline - time.time())
        order = await self._bus.sender.order(
            to, payload, lane=task.lane, ttl=min(timeout, left), context=task.context
        )
        key = name or _hash(order.parts)
        nth = self._seen[to, key]
        self._seen[to, key] += 1
        agents = None if order.anywhere else [order.agent]
        id, given = await self._id(agents, to, key, nth=nth)
        return msgspec.structs.replace(
            order,
            id=id,
            given=given,
            depth=task.depth + 1,
            ancestors=(*task.ancestors, f"{task.agent}.{task.skill}"),
            parent=task.id,
            traceparent=task.traceparent,
        )

    async def _id(self, agents: list[str] | None, to: str, key: str, *, nth: int) -> tuple[str, bool]:
        """The id to use, and whether a task may exist under it: one that did not complete is asked anew."""
        again = 0
        while True:
            id = child_id(self._run.task, to, key, nth=nth, again=again)
            if self._run.fresh:
                return id, False
            found = await self._bus.finder.find(id, agents=agents)
            if found is None or found.outcome is None or found.outcome.status.state is TaskState.COMPLETED:
                return id, found is not None
            again += 1


def _hash(parts: tuple[Part, ...]) -> str:
    return hashlib.sha256(encode(parts)).hexdigest()
