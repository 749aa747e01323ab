"""The bus for one command: with the registry where an address needs it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from xnai.bus import Bus, open_bus
from xnai.bus.sending import TAG


@asynccontextmanager
async def open_bus_for(to: str) -> AsyncIterator[Bus]:
    """The bus of this folder, which can reach `to`, be it `agent.skill` or `tag:TAG.SKILL`."""
    async with open_bus() as bus:
        if not to.startswith(TAG):
            yield bus
            return
        from xnai.registry import open_registry  # most commands never need it

        async with open_registry(bus):
            yield bus
