"""Taking tasks from queues: credit, open pulls, deliveries.

Credit is free slots. Every lane keeps one open pull, so that work is taken from it at once; the rest of the
credit goes where work came last, in pulls that expire within a second. What is open and what is taken
together never exceed the slots by more than one per lane but one: those surplus tasks are held and run next.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
import msgspec
from nats.aio.subscription import Subscription

from xnai.bus.background import background_tasks
from xnai.bus.client import Client
from xnai.bus.jetstream import NANOSECONDS, JetStream
from xnai.bus.parser import Frame
from xnai.bus.transport import Transport
from xnai.protocol import subjects
from xnai.protocol.errors import Unavailable, XnaiError
from xnai.protocol.names import LANES, check_lane
from xnai.protocol.subjects import TaskSubject

log = logging.getLogger(__name__)
_STANDING = 30.0  # seconds that the one open pull of a lane waits
_HEARTBEAT = 5.0
_BURST = 1.0  # seconds that the rest of the credit waits where work came last
_SILENCE = 2.5 * _HEARTBEAT  # an open pull of which nothing is heard for so long is lost
_HEAL_AGAIN = 1.0
_FRESH = 1.0  # seconds: a task that waited less, and was delivered once, has no past
_encode = msgspec.json.encode


class Delivery:
    """One delivery of a stored task. Settle it exactly once: with `ack` or `give_back`.

    `about` is its subject, read; whoever receives it sets that.
    """

    __slots__ = ("_puller", "_tokens", "about", "data", "lane", "reply", "subject", "touched")

    def __init__(self, puller: Puller, lane: Lane, frame: Frame) -> None:
        self._puller = puller
        self.lane = lane
        self.subject, self.reply, self.data = frame.subject, frame.reply, frame.data
        self.touched = lane.heard
        self.about: TaskSubject
        # $JS.ACK[.domain.account].stream.consumer.delivered.sequence.consumer sequence.time.pending[.token]
        tokens = frame.reply.split(".")
        self._tokens = tokens if len(tokens) < 11 else tokens[2:]

    @property
    def count(self) -> int:
        """How often the broker has handed this task out, hand-backs included, as far as it remembers."""
        return int(self._tokens[4])

    @property
    def stored_at(self) -> float:
        """When the task was stored, in seconds since the epoch, by the broker's clock."""
        return int(self._tokens[7]) / NANOSECONDS

    @property
    def fresh(self) -> bool:
        """Whether nobody had this task before, as far as can be told: it waited less than a second.

        A broker that was killed may not know any more what it handed out just before, and a consumer that is
        made again knows nothing. So what was stored before our pulls were lost counts as handed out.
        """
        age = time.time() - self.stored_at
        return self.count == 1 and 0 <= age < min(_FRESH, time.monotonic() - self.lane.since)

    def ack(self) -> None:
        """The task has its outcome: take it out of the queue."""
        self._settle(b"+ACK")

    def give_back(self, delay: float = 0.0) -> None:
        """Somebody may have it again, `delay` seconds from now at the earliest."""
        self._settle(b"-NAK " + _encode({"delay": int(delay * NANOSECONDS)}) if delay > 0 else b"-NAK")

    def touch(self) -> None:
        """Still working on it: the ack wait begins anew, at `touched` by the monotonic clock."""
        self.touched = time.monotonic()
        self._puller.client.post(self.reply, b"+WPI")

    def adopt(self, later: Delivery) -> None:
        """The broker has delivered this task again while it is in our hands: settle both as one."""
        self.reply = later.reply
        self._puller.settled()

    def _settle(self, verdict: bytes) -> None:
        try:
            self._puller.client.post(self.reply, verdict)
        except Unavailable:  # it comes again after the ack wait, and is looked up then
            log.warning("a task could not be settled", extra={"subject": self.subject})
        self._puller.settled()


class Lane:
    """One lane of one queue, and the pulls that are open on it.

    Attributes:
        heard: when the broker last answered one, by the monotonic clock.
        since: when the pulls that were open last were lost.
    """

    def __init__(self, agent: str, name: str, rank: int, inbox: str) -> None:
        self.agent, self.name, self.rank = agent, name, rank
        self.inbox = inbox
        self.request = f"$JS.API.CONSUMER.MSG.NEXT.{subjects.task_stream(agent)}.{name}"
        self.generation = 0
        self.open = 0
        self.broken = False
        self.heard = time.monotonic()
        self.since = -math.inf

    @property
    def reply(self) -> str:
        """Where the answers of this generation's pulls go: those of lost pulls are told by their subject."""
        return f"{self.inbox}.{self.generation}"

    def forget(self) -> None:
        """Whatever was open is lost."""
        self.generation += 1
        self.open = 0
        self.heard = self.since = time.monotonic()


Heal = Callable[[str, str], Awaitable[None]]


class Puller:
    """Pulls tasks for `slots` handlers from all lanes of the queues of some agents.

    Attributes:
        taken: deliveries that are not settled.
        healed: how often a lost pull or consumer was made again.
    """

    def __init__(
        self, transport: Transport, agents: Sequence[str], lanes: Sequence[str], *, slots: int, heal: Heal
    ) -> None:
        self.client: Client = transport.client
        self.taken = 0
        self.healed = 0
        self._transport = transport
        self._lanes = [
            Lane(agent, lane, rank, self.client.new_inbox())
            for agent in agents
            for rank, lane in enumerate(lanes)
        ]
        self._slots = slots
        self._most = slots + len(self._lanes) - 1
        self._heal = heal
        self._busiest: Lane | None = None
        self._busy_until = 0.0
        self._look = anyio.Event()
        self._stopped = False
        self._subscriptions: list[tuple[Lane, Subscription]] = []
        self._paused = False
        self._asks = False

    @property
    def paused(self) -> bool:
        return self._paused

    @property
    def lost(self) -> str | None:
        """Which pulls are lost, if any are. They are made again, unless that cannot be done."""
        for lane in self._lanes:
            if lane.broken:
                return f"The queue of {lane.agent}, lane {lane.name}, is gone."
            silent = time.monotonic() - lane.heard
            if lane.open and silent > _SILENCE:
                return f"Pulls from {lane.agent}, lane {lane.name}, were last answered {silent:.0f} s ago."
        return None

    @asynccontextmanager
    async def pulling(self, receive: Callable[[Delivery], None]) -> AsyncIterator[None]:
        """Hand deliveries to `receive` while the context is open. On entry the first pulls are sent."""
        for lane in self._lanes:
            receiver = self._receiver(lane, receive)
            self._subscriptions.append((lane, await self.client.listen(f"{lane.inbox}.*", receiver)))
        try:
            with self._transport.when_lost(self._listen_elsewhere):
                async with background_tasks() as tasks:
                    self._top_up()
                    tasks.start_soon(self._watch)
                    tasks.start_soon(self._begin_anew_after_reconnects)
                    yield
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(_HEARTBEAT):
                await self.stop()

    async def stop(self) -> None:
        """Ask for nothing more. On return everything that was on its way has been received."""
        self._stopped = True
        while self._subscriptions:
            _, subscription = self._subscriptions.pop()
            await self._drop(subscription)

    def pause(self, paused: bool) -> None:
        """Ask for nothing for a while, or go on."""
        self._paused = paused
        self._look.set()

    def _listen_elsewhere(self) -> None:
        """Have no interest in the answers of pulls that went with the link.

        Between accounts the broker keeps an answer's way with the link that asked. It would hand tasks to a
        lost pull whose place is heard again, and they would get lost on that way until the ack wait is over.
        """
        for lane, subscription in self._subscriptions:
            lane.since = time.monotonic()
            lane.inbox = self.client.new_inbox()
            self.client.move(subscription, f"{lane.inbox}.*")

    async def _drop(self, subscription: Subscription) -> None:
        """Tasks on their way are still received: a mere unsubscribe would leave them to the ack wait."""
        try:
            await self.client.drop(subscription)
        except Exception as error:  # nats-py's own errors, when the link is down: nothing is on its way then
            log.info("a pull could not be ended in order: %s", error)

    def _receiver(self, lane: Lane, receive: Callable[[Delivery], None]) -> Callable[[Frame], None]:
        def received(frame: Frame) -> None:
            lane.heard = time.monotonic()
            if not frame.reply.startswith("$JS.ACK"):
                self._status(lane, frame)
                return
            lane.open = max(0, lane.open - 1)
            self.taken += 1
            self._busiest, self._busy_until = lane, lane.heard + _BURST
            if not lane.open:
                self._look.set()
            receive(Delivery(self, lane, frame))

        return received

    def _status(self, lane: Lane, frame: Frame) -> None:
        """The server's word on a pull: it ends it and tells how much of it went unused."""
        if frame.status == 100 or not frame.subject.endswith(f".{lane.generation}"):
            return
        lane.open = max(0, lane.open - int(frame.header("Nats-Pending-Messages") or 0))
        if (
            frame.status == 503
            or b"Consumer Deleted" in frame.head
            or b"Consumer is push based" in frame.head
        ):
            lane.broken = True
        elif frame.status == 409:
            lane.forget()  # shutdown, or another leader: what was open is never served
        self._look.set()

    def settled(self) -> None:
        """A slot is free again. Those that become free in one turn of the loop are asked for together."""
        self.taken -= 1
        if not self._asks:
            self._asks = True
            asyncio.get_running_loop().call_soon(self._ask)

    def _ask(self) -> None:
        self._asks = False
        try:
            self._top_up()
        except Unavailable:  # the link is down: all pulls begin anew when it is back
            return

    def _top_up(self) -> None:
        if self._stopped or self._paused or not self._transport.connected:
            return
        room = self._most - self.taken
        for lane in self._lanes:
            room -= lane.open
        busiest = self._busiest if time.monotonic() < self._busy_until else None
        for lane in self._lanes:
            if lane is not busiest and not lane.open and room > 0 and not lane.broken:
                room -= 1
                self._pull(lane, 1, _STANDING, heartbeat=_HEARTBEAT)
        if busiest is None or busiest.broken or room <= 0:
            return
        if not busiest.open or 2 * room >= self._slots:
            self._pull(busiest, room, _BURST)

    def _pull(self, lane: Lane, batch: int, expires: float, *, heartbeat: float = 0.0) -> None:
        lane.open += batch
        body = {"batch": batch, "expires": int(expires * NANOSECONDS)}
        if heartbeat:
            body["idle_heartbeat"] = int(heartbeat * NANOSECONDS)
        self.client.post(lane.request, _encode(body), reply=lane.reply)

    async def _watch(self) -> None:
        """Pull again where a pull ended, and heal what is lost, until cancelled."""
        while True:
            with anyio.move_on_after(_HEARTBEAT):
                await self._look.wait()
            self._look = anyio.Event()
            for lane in self._lanes:
                silent = lane.open and time.monotonic() - lane.heard > _SILENCE
                if (lane.broken or silent) and self._transport.connected and not self._stopped:
                    await self._mend(lane)
            try:
                self._top_up()
            except Unavailable:  # the link went down meanwhile: all begins anew when it is back
                continue

    async def _mend(self, lane: Lane) -> None:
        self.healed += 1
        log.warning("pulls anew", extra={"agent": lane.agent, "lane": lane.name, "missing": lane.broken})
        try:
            await self._heal(lane.agent, lane.name)
            lane.broken = False
        except XnaiError as error:
            log.warning("the queue cannot be mended yet: %s", error)
            lane.broken = True
            self._look.set()
            await anyio.sleep(_HEAL_AGAIN)
        lane.forget()

    async def _begin_anew_after_reconnects(self) -> None:
        async for _ in self._transport.reconnections():
            for lane in self._lanes:
                lane.forget()
            self._look.set()


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """Who takes from a queue, as the broker sees it.

    Attributes:
        pulls: open on all lanes; without one nobody works for it now, or has no slot free.
        handed_out: the sequence up to which one lane was handed out, at least once.
        waiting: tasks of that lane that were not.
    """

    pulls: int
    handed_out: int
    waiting: int


async def demand(api: JetStream, agent: str, lane: str) -> Demand:
    """Who takes from the queue of an agent, and how far one of its lanes is handed out."""
    stream = subjects.task_stream(agent)
    lanes = {each: await api.ask(f"CONSUMER.INFO.{stream}.{each}") for each in LANES}
    own = lanes[check_lane(lane)]
    return Demand(
        pulls=sum(info["num_waiting"] for info in lanes.values()),
        handed_out=own["delivered"]["stream_seq"],
        waiting=own["num_pending"],
    )
