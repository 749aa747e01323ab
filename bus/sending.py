"""Making an envelope and storing it in an agent's queue."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import anyio
import msgspec

from xnai.bus.finding import Found
from xnai.bus.publisher import PUBLISH_TIMEOUT, Receipt
from xnai.bus.streams import DAY, KEPT_AFTER_THE_END
from xnai.bus.transport import NoResponders
from xnai.protocol import subjects
from xnai.protocol.a2a import Message, Part, Role, Task
from xnai.protocol.envelope import Envelope, encode
from xnai.protocol.errors import Busy, IdConflict, InvalidArgument, Unavailable, UnknownAgent
from xnai.protocol.names import check_id, check_lane, nearest, new_id, parse_address
from xnai.protocol.payload import parts_of
from xnai.protocol.timestamps import format_timestamp, parse_timestamp

if TYPE_CHECKING:
    from xnai.bus.bus import Bus

LONGEST_TTL = 30 * DAY
_TRY_AGAIN = 0.25
TAG = "tag:"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller wants, checked.

    Attributes:
        said: the A2A Message that the caller gave as payload, with its metadata, if it did.
        given: whether the caller chose the id, so that the task may exist already.
        anywhere: whether another agent will do as well, so that a task that exists there is the same one.
        deadline: seconds since the epoch.
        depth, ancestors, parent, traceparent: inherited from the task that is being worked on, if one is.
    """

    agent: str
    skill: str
    parts: tuple[Part, ...]
    said: Message | None = None
    id: str
    given: bool
    anywhere: bool = False
    context: str
    lane: str
    deadline: float
    depth: int = 0
    ancestors: tuple[str, ...] = ()
    parent: str | None = None
    traceparent: str | None = None


def make_order(
    to: str, payload: object, *, lane: str, ttl: float, id: str | None = None, context: str | None = None
) -> Order:
    """An order for `to` ("agent.skill"), to be done within `ttl` seconds.

    Raises:
        InvalidName, InvalidArgument, InvalidPayload: something in it cannot be.
    """
    agent, skill = parse_address(to)
    if not 0 < ttl <= LONGEST_TTL:
        raise InvalidArgument(
            f"A task's time must be more than 0 and at most {LONGEST_TTL:g} s, not {ttl!r}."
        )
    if context is not None:
        check_id(context, "context id")
    given = id is not None
    id = check_id(id) if id is not None else new_id()
    return Order(
        agent=agent,
        skill=skill,
        parts=parts_of(payload),
        said=payload if isinstance(payload, Message) else None,
        id=id,
        given=given,
        context=context or id,
        lane=check_lane(lane),
        deadline=time.time() + ttl,
    )


class Sent(msgspec.Struct, frozen=True):
    """What became of an order: the task that now exists, which bus sent it, and its outcome if it has one.

    `found` says that it existed before: some of its events may have been heard by nobody here.
    """

    task: Envelope
    instance: str
    outcome: Task | None = None
    found: bool = False


Resolve = Callable[[str, str], Awaitable[str]]
"""Gets a tag and a skill; the agent to ask now."""


async def _cannot_resolve(tag: str, skill: str) -> str:
    raise InvalidArgument(
        f"{TAG}{tag}.{skill} is found by the cards of those alive: use xnai.registry.open_registry(bus)."
    )


class Sender:
    """Stores tasks in the name of a bus. `resolve` knows who can do what a tag asks for."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.resolve: Resolve = _cannot_resolve

    async def order(
        self,
        to: str,
        payload: object,
        *,
        lane: str,
        ttl: float,
        id: str | None = None,
        context: str | None = None,
    ) -> Order:
        """As `make_order`; an address `tag:TAG.SKILL` becomes that of the agent to ask now."""
        if not isinstance(to, str) or not to.startswith(TAG):
            return make_order(to, payload, lane=lane, ttl=ttl, id=id, context=context)
        tag, skill = parse_address(to.removeprefix(TAG))
        to = f"{await self.resolve(tag, skill)}.{skill}"
        order = make_order(to, payload, lane=lane, ttl=ttl, id=id, context=context)
        return msgspec.structs.replace(order, anywhere=True)

    def envelope(self, order: Order) -> Envelope:
        said = order.said or Message(message_id=order.id, role=Role.USER, parts=order.parts)
        return Envelope(
            v=1,
            id=order.id,
            context=order.context,
            agent=order.agent,
            skill=order.skill,
            sender=self._bus.name,
            instance=self._bus.instance,
            lane=order.lane,
            sent=format_timestamp(time.time()),
            deadline=format_timestamp(order.deadline),
            depth=order.depth,
            ancestors=order.ancestors,
            parent=order.parent,
            traceparent=order.traceparent,
            message=said,
        )

    async def send(
        self, task: Envelope, *, look_first: bool, anywhere: bool = False, timeout: float = PUBLISH_TIMEOUT
    ) -> Sent:
        """Store a task, unless the same one exists already, within `timeout` seconds.

        Raises:
            UnknownAgent, Busy, Unavailable, IdConflict: see `Bus.send`.
        """
        if look_first and (found := await self._bus.finder.find(task.id)):
            if anywhere:
                task = msgspec.structs.replace(task, agent=found.agent)
            return await self._same(task, found)
        data = encode(task)
        if len(data) > self._bus.blobs.room:
            until = parse_timestamp(task.deadline) + KEPT_AFTER_THE_END
            data = await self._bus.blobs.fit(task, reader=task.agent, until=until)
        receipt = await self._store(task, data, timeout)
        if receipt.duplicate:  # ours, sent again because the first receipt was lost, or somebody else's
            found = await self._bus.finder.find(task.id)
            if found is None:
                raise IdConflict(f"The id {task.id} belongs to a task of another sender.")
            return await self._same(task, found)
        return Sent(task, self._bus.instance)

    async def _store(self, task: Envelope, data: bytes, timeout: float) -> Receipt:
        subject, until = subjects.task(task.subject), time.monotonic() + timeout
        while True:
            try:
                return await self._bus.publisher.store(subject, data, id=task.id, timeout=timeout)
            except Busy as error:
                raise Busy(f"The queue of {task.agent} is full: nothing was sent. {error}") from error
            except NoResponders:
                await self._check_declared(task.agent)
                if time.monotonic() > until:
                    raise Unavailable(f"The queue of {task.agent} has no leader: nothing was sent.") from None
            await anyio.sleep(_TRY_AGAIN)

    async def _check_declared(self, agent: str) -> None:
        """Tell an agent that never was from a broker that is electing."""
        agents = await self._bus.finder.agents()
        if agent in agents:
            return
        meant = nearest(agent, agents)
        hint = f" Did you mean {meant}?" if meant else ""
        raise UnknownAgent(f"No agent {agent} was ever declared on this bus.{hint}")

    async def _same(self, task: Envelope, found: Found) -> Sent:
        """The task that was found, if it is the one that was ordered."""
        different = [
            what
            for what, ours, theirs in (
                ("agent", task.agent, found.agent),
                ("skill", task.skill, found.skill or task.skill),
                ("payload", await self._content(task.message), await self._content(found.request)),
            )
            if ours != theirs
        ]
        if different:
            raise IdConflict(f"The id {task.id} belongs to a task with another {' and '.join(different)}.")
        stored = found.queued[0] if found.queued else msgspec.structs.replace(task, instance=found.instance)
        return Sent(stored, found.instance, found.outcome, found=True)

    async def _content(self, message: Message | None) -> bytes:
        return encode(await self._bus.blobs.whole(message.parts)) if message else b""
