"""Tasks: how many a second, how long one takes, what it costs the server, and what a full store changes."""

from __future__ import annotations

import statistics
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import anyio

from benchmarks.harness import Figure, Measure, Program, Size, driven, figure, in_turns
from benchmarks.stages import OURS, floor_caller, fresh_server, our_caller
from xnai.bus import Server

IN_FLIGHT = 64
_WARM_UP = 500


def throughput(caller: Program, size: Size) -> Measure:
    async def measure() -> float:
        return float(await caller.ask("throughput", size.tasks, IN_FLIGHT))

    return measure


def _latency(caller: Program, size: Size) -> Measure:
    async def measure() -> float:
        times: list[float] = await caller.ask("latency", size.calls)
        return statistics.median(times)

    return measure


@asynccontextmanager
async def _both() -> AsyncIterator[tuple[Program, Program]]:
    """A caller of ours and one of the floor, warm."""
    async with our_caller() as (ours, _), floor_caller() as floor:
        for caller in (ours, floor):
            await caller.ask("throughput", _WARM_UP, IN_FLIGHT)
        yield ours, floor


async def task_throughput(size: Size) -> Figure:
    """Tasks per second, 64 in flight, caller and worker in processes of their own.

    The floor: the raw program.
    """
    async with _both() as (ours, floor):
        pairs = await in_turns(throughput(ours, size), throughput(floor, size), size.slices)
    return figure("task_throughput", pairs, unit="tasks/s", bar=0.75)


async def task_latency(size: Size) -> Figure:
    """The median of tasks called one after another. Less is better. The floor: the raw program."""
    async with _both() as (ours, floor):
        pairs = await in_turns(_latency(ours, size), _latency(floor, size), size.slices)
    return figure("task_latency", pairs, unit="ms", bar=0.85, less_is_better=True)


async def backlog(size: Size) -> Figure:
    """Tasks per second, where all wait before the worker starts, from the first outcome to the last.

    Ours: with 10,000 waiting. The floor: with 500, so a long queue is drained as fast as a short one.
    """
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(fresh_server())
        address = (server.url, server.token)
        listener = await stack.enter_async_context(driven(OURS, "listener", *address))
        caller = await stack.enter_async_context(driven(OURS, "caller", *address))
        large, small = (
            partial(_drain, server, caller, listener, tasks=tasks, settling=size.settling)
            for tasks in (size.backlog, size.small_backlog)
        )
        pairs = await in_turns(large, small, size.pairs)
    return figure("backlog", pairs, unit="tasks/s", bar=0.8)


async def _drain(server: Server, caller: Program, listener: Program, *, tasks: int, settling: float) -> float:
    await caller.ask("send", tasks)
    await anyio.sleep(settling)  # tasks that waited less than a second are handled as fresh ones
    async with driven(OURS, "echo", server.url, server.token):
        return float(await listener.ask("drained", tasks))


async def log_growth(size: Size) -> Figure:
    """Tasks per second with 200,000 outcomes in the log. The floor: the same with an empty log."""
    async with our_caller() as (grown, _), our_caller() as (empty, _):
        assert await grown.ask("fill", size.stored) == size.stored
        for caller in (grown, empty):
            await caller.ask("throughput", _WARM_UP, IN_FLIGHT)
        pairs = await in_turns(throughput(grown, size), throughput(empty, size), size.slices)
    return figure("log_growth", pairs, unit="tasks/s", bar=0.8)
