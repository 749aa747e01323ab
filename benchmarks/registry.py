"""The registry: what a look-up costs, and how soon 50 watchers have heard of a change."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack

import anyio
import msgspec

from benchmarks.agents import echo
from benchmarks.harness import Figure, Size, figure, in_turns
from benchmarks.stages import fresh_server
from xnai.agents.announcing import card_of, schemas_of
from xnai.bus import Bus, open_bus
from xnai.bus.parser import Frame
from xnai.protocol import subjects
from xnai.protocol.envelope import encode
from xnai.protocol.presence import Level, Presence, with_presence
from xnai.registry import open_registry
from xnai.registry.roster import Kind

MOST_MICROSECONDS = 20.0
AGENTS = 50
_LOOKUPS = 2_000
_LEASE = 60


def _card(number: int, running: int = 0) -> tuple[str, bytes]:
    """The place and the bytes of the card of one of many agents, all with the same skill."""
    name, instance = f"agent-{number}", f"{number:08x}"
    presence = Presence(
        agent=name,
        instance=instance,
        host="here",
        pid=number,
        version="1",
        started="2026-01-01T00:00:00.000Z",
        concurrency=8,
        running=running,
        level=Level.PROGRESSING,
        skills=schemas_of(echo),
    )
    card = msgspec.structs.replace(card_of(echo), name=name)
    return subjects.card(name, instance), encode(with_presence(card, presence))


async def _hold(bus: Bus, number: int, running: int = 0) -> None:
    place, data = _card(number, running)
    await bus.publisher.publish(place, data, f"Nats-TTL: {_LEASE}s\r\n")


async def registry_lookup(size: Size) -> Figure:
    """Microseconds to choose an agent by skill and tag among 50 alive. Less is better. The floor: 20."""
    async with fresh_server() as server, open_bus(server.url, token=server.token, name="bench") as bus:
        await bus.declare("echo")
        for number in range(AGENTS):
            await _hold(bus, number)
        async with open_registry(bus) as registry:
            assert len(registry.instances()) == AGENTS
            pairs = []
            for _ in range(size.slices):
                began = time.perf_counter()
                for _ in range(_LOOKUPS):
                    registry.choose(skill="upper", tag="upper")
                each = (time.perf_counter() - began) / _LOOKUPS * 1e6
                pairs.append((each, MOST_MICROSECONDS))
    return figure("registry_lookup", pairs, unit="us", bar=1.0, less_is_better=True)


async def card_change(size: Size) -> Figure:
    """Milliseconds until 50 watchers have heard of a changed card. Less is better.

    The floor: a raw publish to 50 subscribers. Both are connections of one process.
    """
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(fresh_server())
        buses = [
            await stack.enter_async_context(open_bus(server.url, token=server.token, name="bench"))
            for _ in range(AGENTS)
        ]
        holder = buses[0]
        await holder.declare("echo")
        await _hold(holder, 1)
        heard = _Counter(AGENTS)
        registries = [await stack.enter_async_context(open_registry(bus)) for bus in buses]
        for registry in registries:
            stack.enter_context(registry.told(lambda change: heard.count(change.kind is Kind.RENEWED)))
        for bus in buses:
            await stack.enter_async_context(bus.transport.listen("bench.raw", heard.frame))
            await bus.transport.flush()
        running = 0

        async def ours() -> float:
            nonlocal running
            running += 1
            place, data = _card(1, running)
            return await heard.after(
                lambda: holder.publisher.publish(place, data, f"Nats-TTL: {_LEASE}s\r\n")
            )

        async def raw() -> float:
            _, data = _card(1, running)
            return await heard.after(lambda: holder.transport.client.send("bench.raw", data))

        await ours()
        await raw()
        pairs = await in_turns(ours, raw, size.slices)
    return figure("card_change", pairs, unit="ms", bar=1 / 3, less_is_better=True)


class _Counter:
    """Waits until everybody has heard."""

    def __init__(self, everybody: int) -> None:
        self._everybody, self._heard, self._all = everybody, 0, anyio.Event()

    def count(self, counts: bool) -> None:
        self._heard += counts
        if self._heard == self._everybody:
            self._all.set()

    def frame(self, frame: Frame) -> None:
        self.count(True)

    async def after(self, act: object) -> float:
        """Milliseconds from `act` to the last that hears of it."""
        self._heard, self._all = 0, anyio.Event()
        began = time.perf_counter()
        await act()  # type: ignore[operator]
        with anyio.fail_after(30):
            await self._all.wait()
        return (time.perf_counter() - began) * 1e3
