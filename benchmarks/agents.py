"""The agents that are measured: one answers at once, one waits to be cancelled."""

from __future__ import annotations

import time

import anyio

from xnai.agents import Agent, Context

echo = Agent("echo")
hold = Agent("hold", concurrency=128)
AGENTS = {agent.name: agent for agent in (echo, hold)}


class Held:
    """The handlers that wait to be cancelled, and when they ended."""

    def __init__(self) -> None:
        self._waiting: set[str] = set()
        self._ended: dict[str, float] = {}
        self._changed = anyio.Event()

    async def wait(self, id: str) -> None:
        """What the handler of task `id` does."""
        self._waiting.add(id)
        self._changed.set()
        try:
            await anyio.sleep_forever()
        finally:
            self._waiting.remove(id)
            self._ended[id] = time.monotonic()

    async def holding(self, count: int) -> None:
        """Return once so many wait."""
        with anyio.fail_after(30):
            while len(self._waiting) < count:
                self._changed = anyio.Event()
                await self._changed.wait()

    async def ended(self) -> dict[str, float]:
        """When each task's handler ended, in seconds of the machine's monotonic clock; they are forgotten."""
        told, self._ended = self._ended, {}
        return told


held = Held()


@echo.skill
async def upper(text: str, ctx: Context) -> str:
    """The text in capitals."""
    return text.upper()


@hold.skill(name="hold")
async def wait(number: int, ctx: Context) -> None:
    """Wait to be cancelled."""
    await held.wait(ctx.task.id)
