"""Joining a test's broker: members, workers, a link that can be cut, and a log that can be waited for."""

from __future__ import annotations

import asyncio
import base64
import logging
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import msgspec

from xnai.agents import Agent, Worker, serve
from xnai.bus import Bus, Limits, Server, open_bus
from xnai.bus.background import background_tasks
from xnai.bus.jetstream import NO_MESSAGE, ApiError
from xnai.protocol import Envelope
from xnai.protocol.subjects import DEAD_STREAM, task_stream

Probe = Callable[[str, Envelope], Awaitable[None]]


@asynccontextmanager
async def member(server: Server, name: str = "tester", *, url: str | None = None) -> AsyncIterator[Bus]:
    """A bus of its own on `server`, or on the link at `url`."""
    async with open_bus(url or server.url, token=server.token, name=name) as bus:
        yield bus


@asynccontextmanager
async def worker(
    server: Server,
    agent: Agent,
    *,
    limits: Limits | None = None,
    drain: float = 0.0,
    probe: Probe | None = None,
    url: str | None = None,
) -> AsyncIterator[Worker]:
    """One process's worth of `agent`, with a connection of its own."""
    async with (
        member(server, agent.name, url=url) as bus,
        serve(agent, bus, limits=limits, drain=drain, probe=probe) as serving,
    ):
        yield serving


class Link:
    """A way to the broker that can be cut, so that one side alone loses it."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._up = anyio.Event()
        self._up.set()
        self._scope = anyio.CancelScope()
        self.port = 0
        self.hang_ups = 0
        """How many of those who come next are cut off once they have said who they are."""

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Break what is connected, and let nobody in."""
        self._up = anyio.Event()
        self._scope.cancel()

    def mend(self) -> None:
        self._up.set()

    async def run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        started = False
        while True:
            await self._up.wait()
            async with await anyio.create_tcp_listener(
                local_host="127.0.0.1", local_port=self.port
            ) as listener:
                self.port = listener.extra(anyio.abc.SocketAttribute.local_port)
                with anyio.CancelScope() as self._scope:
                    if not started:
                        task_status.started()
                    started = True
                    await listener.serve(self._connected)

    async def _connected(self, client: anyio.abc.SocketStream) -> None:
        async with (
            client,
            await anyio.connect_tcp("127.0.0.1", self._server.port) as broker,
            anyio.create_task_group() as tasks,
        ):
            if self.hang_ups:
                self.hang_ups -= 1
                await client.send(await broker.receive())
                await client.receive()
                _reset(client)
                return
            tasks.start_soon(_pump, client, broker, tasks.cancel_scope)
            await _pump(broker, client, tasks.cancel_scope)


def _reset(stream: anyio.abc.SocketStream) -> None:
    """Let its end be no orderly one."""
    at_once = struct.pack("ii", 1, 0)
    stream.extra(anyio.abc.SocketAttribute.raw_socket).setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, at_once
    )


async def _pump(
    source: anyio.abc.SocketStream, sink: anyio.abc.SocketStream, both: anyio.CancelScope
) -> None:
    try:
        while True:
            await sink.send(await source.receive())
    except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
        both.cancel()


@asynccontextmanager
async def open_link(server: Server) -> AsyncIterator[Link]:
    """A link to `server`, up."""
    link = Link(server)
    async with background_tasks() as tasks:
        await tasks.start(link.run)
        yield link


class Said(logging.Handler):
    """What was logged and holds `words`; `heard` is set at the first, from whichever thread."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words, self.lines = words, list[str]()
        self.heard = anyio.Event()
        self._loop = asyncio.get_running_loop()

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if self.words in line:
            self.lines.append(line)
            self._loop.call_soon_threadsafe(self.heard.set)


@contextmanager
def listening(logger: str, words: str) -> Iterator[Said]:
    """Wait for what a part of the program says in its log."""
    said = Said(words)
    target = logging.getLogger(logger)
    target.addHandler(said)
    try:
        yield said
    finally:
        target.removeHandler(said)


async def dead_letter(bus: Bus, subject: str) -> dict[str, Any] | None:
    """The last dead letter under a subject, as plain data."""
    try:
        answer = await bus.api.ask(f"STREAM.MSG.GET.{DEAD_STREAM}", {"last_by_subj": subject})
    except ApiError as error:
        if error.number != NO_MESSAGE:
            raise
        return None
    letter: dict[str, Any] = msgspec.json.decode(base64.b64decode(answer["message"]["data"]))
    return letter


async def queue_of(bus: Bus, agent: str) -> int:
    """How many tasks stand in the queue of an agent, those at work included."""
    messages: int = (await bus.api.stream_info(task_stream(agent)))["state"]["messages"]
    return messages


async def until_queue_holds(bus: Bus, agent: str, tasks: int) -> None:
    """Ask until so many tasks stand there: the broker tells nobody of an acknowledgement."""
    while await queue_of(bus, agent) != tasks:
        await anyio.lowlevel.checkpoint()
