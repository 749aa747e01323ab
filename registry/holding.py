"""Holding a card: stored under a lease, renewed while the process is well, taken back at the end."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio

from xnai.bus import Bus
from xnai.bus.background import background_tasks
from xnai.bus.streams import LEASE
from xnai.protocol import subjects
from xnai.protocol.card import AgentCard
from xnai.protocol.envelope import encode
from xnai.protocol.errors import Busy, Unavailable

log = logging.getLogger(__name__)
_GOODBYE = 1.0  # seconds, the shortest lease there is: an empty card says that its holder has left
_STEP = 512  # bytes
_GATHERING = 0.1  # seconds after the wish for a renewal: what changes meanwhile goes with it


class HeldCard:
    """A card that is being held; `renew` says at once that something has changed."""

    def __init__(self, bus: Bus, agent: str, describe: Callable[[], AgentCard], lease: float) -> None:
        self._bus, self._describe, self._lease = bus, describe, lease
        self._subject = subjects.card(agent, bus.instance)
        self._due = anyio.Event()

    def renew(self) -> None:
        """Store the card again soon, as it is then."""
        self._due.set()

    async def store(self) -> None:
        """Store the card as it is now. Raises Unavailable.

        Its size grows in steps only: in a full stream a card may be renewed, but not with a larger one.
        """
        card = encode(self._describe())
        await self._publish(card.ljust(-(-len(card) // _STEP) * _STEP), self._lease)

    async def keep(self) -> None:
        """Renew it each third of the lease, whenever asked to, and when a lost link is back."""
        with self._bus.transport.when_back(self.renew):
            while True:
                with anyio.move_on_after(self._lease / 3):
                    await self._due.wait()
                    await anyio.sleep(_GATHERING)
                self._due = anyio.Event()
                if not self._bus.transport.connected:  # renewed as soon as it is
                    continue
                try:
                    await self.store()
                except Unavailable as error:  # it may expire: whoever watches then says so, rightly
                    log.warning("the agent card could not be renewed: %s", error)

    async def take_back(self) -> None:
        """Tell whoever watches that this instance leaves, if the broker can be reached at once."""
        if not self._bus.transport.connected:
            return
        with anyio.move_on_after(_GOODBYE, shield=True):
            try:
                await self._publish(b"", _GOODBYE)
            except Unavailable:
                return

    async def _publish(self, data: bytes, lease: float) -> None:
        head = f"Nats-TTL: {lease:.0f}s\r\n"
        await self._bus.publisher.publish(self._subject, data, head, timeout=max(1.0, lease / 3))


@asynccontextmanager
async def hold_card(
    bus: Bus, agent: str, describe: Callable[[], AgentCard], *, lease: float = LEASE
) -> AsyncIterator[HeldCard]:
    """Hold the card that `describe` makes, for this bus's instance of `agent`, while the context is open.

    The stream of the cards must exist: `Bus.declare` makes it.

    Where there is no room for it, it is tried again at each renewal: whoever fills the stream of the cards
    cannot keep agents from working.

    Raises:
        Unavailable: it could not be stored.
    """
    held = HeldCard(bus, agent, describe, lease)
    try:
        await held.store()
    except Busy as error:
        log.error("the agent card is not stored: %s", error)
    try:
        async with background_tasks() as tasks:
            tasks.start_soon(held.keep)
            yield held
    finally:
        await held.take_back()
