"""An agent with typed skills.

Run it with `xnai run examples/maths.py`, and ask it with `xnai call maths.double 21`.
"""

from collections.abc import AsyncIterator

import anyio

from xnai.agents import Agent, Context

agent = Agent("maths", description="Arithmetic", version="1.0.0")


@agent.skill(tags=["demo"])
async def double(n: int, ctx: Context) -> int:
    """Twice n."""
    return 2 * n


@agent.skill(tags=["demo"])
async def count(n: int) -> AsyncIterator[str]:
    """The numbers from 1 to n, one after the other."""
    for number in range(1, n + 1):
        yield f"{number} "


@agent.skill(tags=["demo"])
async def rest(seconds: float, ctx: Context) -> str:
    """Nothing, for a while, and a word about it first."""
    await ctx.progress(f"resting for {seconds:g} s")
    await anyio.sleep(seconds)
    return "rested"
