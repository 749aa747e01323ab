"""The agent that is measured: one short typed skill, and one that waits to be cancelled."""

from __future__ import annotations

import time

import anyio

from xnai.agents import Agent, Context

agent = Agent("echo", concurrency=64)
held: dict[str, float] = {}
"""When the handlers of `hold` ended, by task id, on the machine's monotonic clock; 0 while they run."""


@agent.skill
async def upper(text: str, ctx: Context) -> str:
    """The text in capitals."""
    return text.upper()


@agent.skill
async def hold(number: int, ctx: Context) -> None:
    """Wait to be cancelled."""
    held[ctx.task.id] = 0.0
    try:
        await anyio.sleep_forever()
    finally:
        held[ctx.task.id] = time.monotonic()
