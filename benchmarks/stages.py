"""What stands while something is measured: a server each, and the programs on it."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from benchmarks import floor
from benchmarks.harness import Program, bare_server, driven
from xnai.bus import Server, open_server

OURS, FLOOR = "benchmarks.ours", "benchmarks.floor"


@asynccontextmanager
async def fresh_server() -> AsyncIterator[Server]:
    """The product's own server, as `xnai up` starts it."""
    with tempfile.TemporaryDirectory(prefix="xnai-bench-") as folder:
        async with open_server(Path(folder)) as server:
            yield server


@asynccontextmanager
async def our_caller(agent: str = "echo") -> AsyncIterator[tuple[Program, Program]]:
    """A caller and a worker of ours, on a server of their own."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(fresh_server())
        worker = await stack.enter_async_context(driven(OURS, agent, server.url, server.token))
        yield await stack.enter_async_context(driven(OURS, "caller", server.url, server.token)), worker


@asynccontextmanager
async def floor_server() -> AsyncIterator[str]:
    """The floor's server with its streams; yields its URL."""
    async with bare_server() as addresses:
        (url,) = addresses["nats"]
        await floor.declare(url)
        yield url


@asynccontextmanager
async def floor_caller() -> AsyncIterator[Program]:
    """A caller of the floor, whose worker stands by."""
    async with floor_server() as url, driven(FLOOR, "worker", url), driven(FLOOR, "caller", url) as caller:
        yield caller
