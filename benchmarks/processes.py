"""Agent processes: what one holds, how fast it starts, what it does while nothing is asked."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio

from benchmarks.harness import Figure, Program, Size, driven, figure, in_turns, program
from benchmarks.stages import FLOOR, floor_server, fresh_server
from xnai.bus import Server

MOST_MEMORY = 45.0  # MB
MOST_CPU = 2.0  # per cent of one core, all agents together
_SAMPLES = 10
_PAGE = os.sysconf("SC_PAGE_SIZE")


async def idle_memory_mb(size: Size) -> Figure:
    """Resident memory of a process that serves one agent and does nothing. Less is better. The floor: 45."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(fresh_server())
        agents = [await stack.enter_async_context(_agent(server)) for _ in range(size.pairs)]
        await anyio.sleep(size.settling)
        pairs = [(resident(agent.pid), MOST_MEMORY) for agent in agents]
    return figure("idle_memory_mb", pairs, unit="MB", bar=1.0, less_is_better=True)


async def start(size: Size) -> Figure:
    """Milliseconds from exec to consuming. Less is better.

    The floor: a raw nats-py program that connects, makes a consumer and pulls.
    """
    async with fresh_server() as server, floor_server() as url:

        async def ours() -> float:
            began = time.perf_counter()
            async with _agent(server):
                return (time.perf_counter() - began) * 1e3

        async def raw() -> float:
            began = time.perf_counter()
            async with driven(FLOOR, "start", url):
                return (time.perf_counter() - began) * 1e3

        await ours()
        await raw()
        pairs = await in_turns(ours, raw, 2 * size.pairs)
    return figure("start", pairs, unit="ms", bar=0.5, less_is_better=True)


async def idle_cpu(size: Size) -> Figure:
    """What 20 agent processes take of one core while nothing is asked. Less is better. The floor: 2 %."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(fresh_server())
        agents = [await stack.enter_async_context(_agent(server)) for _ in range(size.agents)]
        await anyio.sleep(size.settling)
        pairs = []
        for _ in range(_SAMPLES):
            began, before = time.perf_counter(), sum(cpu(agent.pid) for agent in agents)
            await anyio.sleep(size.window)
            used = sum(cpu(agent.pid) for agent in agents) - before
            used = max(used, 1e-9)  # in a short window none may have run
            pairs.append((100 * used / (time.perf_counter() - began), MOST_CPU))
    return figure("idle_cpu", pairs, unit="% of a core", bar=1.0, less_is_better=True)


@asynccontextmanager
async def _agent(server: Server) -> AsyncIterator[Program]:
    """`xnai run` with one agent; on entry it consumes."""
    bus = {"XNAI_URL": server.url, "XNAI_TOKEN": server.token}
    command = ("xnai.deploy.cli", "run", "benchmarks.agents:echo")
    async with program(*command, stdin=subprocess.DEVNULL, environment=bus) as agent:
        said = await agent.line()
        assert said == "ready echo", said
        yield agent


def resident(pid: int) -> float:
    """Megabytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / 1e6


def cpu(pid: int) -> float:
    """Seconds of CPU so far, user and system, to the nanosecond: /proc/PID/stat counts in hundredths."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
