"""The registry: a local copy of all cards, so that no call asks where an agent is."""

from __future__ import annotations

import logging
import random
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import NamedTuple

import anyio
from anyio.abc import TaskGroup, TaskStatus

from xnai.bus import Bus
from xnai.bus.background import background_tasks
from xnai.bus.hearing import sequence_of, stands_for
from xnai.bus.parser import Frame
from xnai.bus.streams import LEASE
from xnai.bus.transport import NoResponders
from xnai.protocol import subjects
from xnai.protocol.errors import MalformedMessage, Unavailable, UnknownAgent
from xnai.protocol.presence import Level, read_card
from xnai.registry.roster import Change, Instance, Key, Kind, Roster

log = logging.getLogger(__name__)
_TICK = 1.0
_MOST_REMEMBERED = 1_000
_STOOD_STILL = 3.0  # seconds between two ticks that mean a pause: of this process, or of the machine
_CONSUMING = (Level.CONSUMING, Level.PROGRESSING)
_EXPIRED = b"\r\nNats-Marker-Reason: MaxAge\r\n"


@asynccontextmanager
async def open_registry(bus: Bus, *, lease: float = LEASE) -> AsyncIterator[Registry]:
    """Follow all cards while the context is open; on entry those that are held are known.

    While it is open, `bus` also takes addresses of the form `tag:TAG.SKILL`.

    Args:
        bus: any bus.
        lease: seconds, that of the holders.

    Raises:
        Unavailable: the broker does not answer.
    """
    registry = Registry(bus, lease)
    async with bus.transport.listen(subjects.ALIVE_SUBJECTS, registry.heard), background_tasks() as tasks:
        await bus.transport.flush()
        await registry.read()
        tasks.start_soon(registry.watch_time)
        tasks.start_soon(registry.read_after_reconnects)
        before, bus.sender.resolve = bus.sender.resolve, registry.resolve
        try:
            yield registry
        finally:
            bus.sender.resolve = before


class _Offer(NamedTuple):
    """By agent: tasks for each of its slots, and slots of all its instances."""

    load: dict[str, float]
    slots: dict[str, int]


class Registry:
    """Who is alive, by name, role, skill and tag. Open it with `open_registry`."""

    def __init__(self, bus: Bus, lease: float) -> None:
        self._bus = bus
        self._roster = Roster(lease)
        self._watchers: list[Callable[[Change], None]] = []
        self._chosen: Counter[str] = Counter()
        self._offers: dict[tuple[str, str | None], _Offer] = {}
        self._ticked = time.time()

    def instances(self) -> list[Instance]:
        """Everything that is alive, sorted by agent and instance."""
        return [self._roster.instances[key] for key in sorted(self._roster.instances)]

    def find(
        self,
        *,
        agent: str | None = None,
        role: str | None = None,
        skill: str | None = None,
        tag: str | None = None,
    ) -> list[Instance]:
        """The instances that are all that is asked: so named, in that role, with such a skill."""
        return [
            instance
            for instance in self._roster.instances.values()
            if (agent is None or instance.presence.agent == agent)
            and (role is None or role in instance.presence.roles)
            and ((skill is None and tag is None) or _offers(instance, skill, tag))
        ]

    def choose(self, *, skill: str, tag: str | None = None) -> str:
        """The agent to ask for a skill: of those alive, the one with the most room for its size.

        What was chosen since an instance spoke last counts as running there.

        Raises:
            UnknownAgent: nobody alive offers it.
        """
        offer = self._offers.get((skill, tag)) or self._offer(skill, tag)
        if not offer.load:
            with_tag = f" with the tag {tag}" if tag else ""
            raise UnknownAgent(f"Nobody alive offers a skill {skill}{with_tag}.")
        agent = min(offer.load, key=offer.load.__getitem__)
        offer.load[agent] += 1 / offer.slots[agent]
        self._chosen[agent] += 1
        return agent

    def _offer(self, skill: str, tag: str | None) -> _Offer:
        """How busy everybody is who offers a skill; remembered until one of all instances says something."""
        busy: Counter[str] = Counter()
        offer = _Offer({}, {})
        instances = self.find(skill=skill, tag=tag)
        for instance in random.sample(instances, len(instances)):  # those that are equal take turns
            presence = instance.presence
            if presence.level in _CONSUMING:
                busy[presence.agent] += presence.running
                offer.slots[presence.agent] = offer.slots.get(presence.agent, 0) + presence.concurrency
        for agent, slots in offer.slots.items():
            offer.load[agent] = (busy[agent] + self._chosen[agent]) / slots
        if len(self._offers) >= _MOST_REMEMBERED:
            self._offers.clear()
        self._offers[skill, tag] = offer
        return offer

    async def resolve(self, tag: str, skill: str) -> str:
        """For the bus: the agent that an address `tag:TAG.SKILL` means now."""
        return self.choose(skill=skill, tag=tag)

    async def watch(self) -> AsyncIterator[Change]:
        """Who is there as JOINED, and then every change, until the reader leaves."""
        waiting = deque(Change(Kind.JOINED, instance) for instance in self.instances())
        news = anyio.Event()

        def take(change: Change) -> None:
            waiting.append(change)
            news.set()

        with self.told(take):
            while True:
                while waiting:
                    yield waiting.popleft()
                news = anyio.Event()
                await news.wait()

    @contextmanager
    def told(self, callback: Callable[[Change], None]) -> Iterator[None]:
        """Hand every change to `callback`, at once, while the context is open."""
        self._watchers.append(callback)
        try:
            yield
        finally:
            self._watchers.remove(callback)

    # Hearing

    def heard(self, frame: Frame) -> None:
        """A card that the broker has stored or let go."""
        place = subjects.held_card(frame.subject)
        if not stands_for(frame, place):
            log.warning("heard a card that was never stored", extra={"subject": frame.subject})
            return
        if frame.data:
            self._tell(self._held(place, sequence_of(frame), frame.data))
        elif _EXPIRED in frame.head:
            self._look_at_the_clock()
            self._tell(self._roster.ended(_key(place), time.monotonic()))
        else:
            self._tell(self._roster.left(_key(place)))

    def _held(self, place: str, sequence: int, data: bytes) -> list[Change]:
        instance = _read(place, sequence, data)
        return [] if instance is None else self._roster.held(instance)

    def _tell(self, changes: list[Change]) -> None:
        for change in changes:
            self._offers.clear()
            self._chosen.pop(change.instance.presence.agent, None)
            for watcher in self._watchers:
                watcher(change)

    async def read(self) -> None:
        """Read all cards that are stored."""
        self._tell(self._roster.read(await read_instances(self._bus), time.monotonic()))

    async def read_after_reconnects(self) -> None:
        async for _ in self._bus.transport.reconnections():
            self._roster.doubt(time.monotonic())
            try:
                await self.read()
            except Unavailable as error:
                log.warning("the agent cards could not be read: %s", error)

    async def watch_time(self) -> None:
        """Notice pauses, and believe in ends once their time has come."""
        while True:
            await anyio.sleep(_TICK)
            self._look_at_the_clock()
            if self._bus.transport.connected:
                self._tell(self._roster.overdue(time.monotonic()))

    def _look_at_the_clock(self) -> None:
        """A gap in the time of day means that this process or the whole machine stood still."""
        now = time.time()
        if now - self._ticked > _STOOD_STILL:
            self._roster.doubt(time.monotonic())
        self._ticked = now


async def read_instances(bus: Bus) -> list[Instance]:
    """Everything whose card is held now, asked once. Raises Unavailable."""
    try:
        stored = [card async for card in bus.api.scan(subjects.CARD_STREAM, subjects.CARD_SUBJECTS)]
    except NoResponders:  # nobody has ever held one
        return []
    cards = (_read(card.subject, card.sequence, card.data) for card in stored if card.data)
    return [instance for instance in cards if instance is not None]


class LazyRegistry:
    """A registry that is opened when it is first needed, in `tasks`: most agents never ask for a tag."""

    def __init__(self, bus: Bus, tasks: TaskGroup) -> None:
        self._bus, self._tasks = bus, tasks
        self._opening = anyio.Lock()
        self._registry: Registry | None = None

    async def resolve(self, tag: str, skill: str) -> str:
        """As `Registry.resolve`. Raises Unavailable as well."""
        async with self._opening:
            if self._registry is None:
                self._registry = await self._tasks.start(self._hold)
        return self._registry.choose(skill=skill, tag=tag)

    async def _hold(self, *, task_status: TaskStatus[Registry]) -> None:
        async with open_registry(self._bus) as registry:
            task_status.started(registry)
            await anyio.sleep_forever()


def _offers(instance: Instance, skill: str | None, tag: str | None) -> bool:
    return any(
        (skill is None or one.id == skill) and (tag is None or tag in one.tags)
        for one in instance.card.skills
    )


def _key(place: str) -> Key:
    agent, instance = place.split(".")[-2:]
    return agent, instance


def _read(place: str, sequence: int, data: bytes | memoryview) -> Instance | None:
    """The instance whose card stands there; None for what is no card, or that of somebody else."""
    try:
        card, presence = read_card(bytes(data))
    except MalformedMessage as error:
        log.warning("a card that cannot be read is passed over: %s", error, extra={"subject": place})
        return None
    instance = Instance(card, presence, sequence)
    if instance.key != _key(place):
        log.warning("a card that stands in another's place is passed over", extra={"subject": place})
        return None
    return instance
