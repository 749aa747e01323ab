"""Cancelling: how soon a handler stops."""

from __future__ import annotations

from benchmarks.harness import Figure, Size, figure, in_turns, percentile
from benchmarks.stages import floor_caller, our_caller

_P99 = 0.99


async def cancel_stops(size: Size) -> Figure:
    """From `cancel` to the end of the handler's scope, of 100 the slowest but one. Less is better.

    The floor: a plain nats-py request to another process and back, likewise the slowest but one of 100.
    """
    async with our_caller("hold") as (caller, worker), floor_caller() as raw:

        async def stop() -> float:
            await caller.ask("hold", size.cancels)
            await worker.ask("holding", size.cancels)
            began, ended = await caller.ask("cancel"), await worker.ask("ended")
            return percentile([(ended[id] - began[id]) * 1e3 for id in began], _P99)

        async def request() -> float:
            return percentile(await raw.ask("ping", size.cancels), _P99)

        await stop()
        await request()
        pairs = await in_turns(stop, request, 2 * size.pairs)
    return figure("cancel_stops", pairs, unit="ms", bar=1 / 3, less_is_better=True)
