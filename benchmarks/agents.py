"""The agents that are measured: one answers at once, one waits to be cancelled."""

from __future__ import annotations

import time

import anyio

from xnai.agents import Agent, Context

echo = Agent("echo")
hold = Agent("hold", concurrency=128)
AGENTS = {agent.name: agent for agent in (echo, hold)}

held: dict[str, float] = {}
"""When the handlers of `hold` ended, by task id, on the machine's monotonic clock; 0 while they run."""


@echo.skill
async def upper(text: str, ctx: Context) -> str:
    """The text in capitals."""
    return text.upper()


@hold.skill(name="hold")
async def wait(number: int, ctx: Context) -> None:
    """Wait to be cancelled."""
    held[ctx.task.id] = 0.0
    try:
        await anyio.sleep_forever()
    finally:
        held[ctx.task.id] = time.monotonic()
