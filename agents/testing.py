"""For authors' own tests: a fresh server, a bus, and agents that serve, in one line.

async def test_twice() -> None:
    async with running(maths) as bus:
        assert await bus.call("maths.double", 21, int) == 42
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from xnai.agents.agent import Agent
from xnai.agents.worker import serve
from xnai.bus.bus import Bus, open_bus
from xnai.bus.server import Server, ServerOptions, open_server
from xnai.bus.streams import Limits

SENDER = "tester"


@asynccontextmanager
async def fresh_server(options: ServerOptions | None = None) -> AsyncIterator[Server]:
    """A real nats-server on a free loopback port, with an empty store that goes with it."""
    with tempfile.TemporaryDirectory(prefix="xnai-test-") as folder:
        async with open_server(Path(folder), options) as server:
            yield server


@asynccontextmanager
async def running(*agents: Agent, limits: Limits | None = None) -> AsyncIterator[Bus]:
    """A bus on which `agents` serve in this process, each with a connection of its own.

    Raises:
        NoBus, ServerTooOld: there is no nats-server to start.
    """
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(fresh_server())
        bus = await stack.enter_async_context(open_bus(server.url, token=server.token, name=SENDER))
        for agent in agents:
            own = await stack.enter_async_context(open_bus(server.url, token=server.token, name=agent.name))
            await stack.enter_async_context(serve(agent, own, limits=limits, drain=0.0))
        yield bus
