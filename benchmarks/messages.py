"""What a task costs the server in messages, by the server's own counters."""

from __future__ import annotations

import urllib.request
from collections import Counter
from contextlib import AsyncExitStack

import anyio
import anyio.to_thread
import msgspec

from benchmarks.harness import Figure, Program, Size, bare_server, driven, figure
from benchmarks.stages import OURS
from benchmarks.tasks import IN_FLIGHT
from xnai.bus.parser import Frame
from xnai.bus.transport import open_transport

MOST = 7
_QUIET = 0.1  # seconds in which nothing more is counted
_WATCHER = "watcher"


class _Connection(msgspec.Struct, frozen=True):
    in_msgs: int
    out_msgs: int
    subscriptions: int
    name: str = ""


class _Connections(msgspec.Struct, frozen=True):
    connections: list[_Connection]


class _Counts(msgspec.Struct, frozen=True):
    messages: int
    subscriptions: int


async def messages_per_task(size: Size) -> Figure:
    """Messages that enter and leave the server for one task, pulls apart. Less is better. The floor: 7.

    Three in: the task, its outcome, the acknowledgement. Four out: two confirmations, the task, the outcome.
    One pull asks for many tasks: a connection that listens counts pulls and their ends, to leave them out.
    """
    async with AsyncExitStack() as stack:
        addresses = await stack.enter_async_context(bare_server("-m", "-1"))
        (url,), (monitoring,) = addresses["nats"], addresses["monitoring"]
        pulls: Counter[str] = Counter()
        watcher = await stack.enter_async_context(open_transport(url, name=_WATCHER))
        await stack.enter_async_context(driven(OURS, "echo", url))
        caller = await stack.enter_async_context(driven(OURS, "caller", url))
        for subject in ("$JS.API.CONSUMER.MSG.NEXT.>", "_INBOX.>"):
            await stack.enter_async_context(watcher.listen(subject, lambda frame: _count(frame, pulls)))
        await caller.ask("throughput", size.tasks, IN_FLIGHT)
        pairs = [(await _per_task(caller, monitoring, pulls, size), float(MOST)) for _ in range(size.pairs)]
    return figure("messages_per_task", pairs, unit="messages", bar=1.0, less_is_better=True)


def _count(frame: Frame, pulls: Counter[str]) -> None:
    """A pull, or the server's word that one has ended or still stands."""
    if frame.subject.startswith("$JS.API.") or frame.status:
        pulls["messages"] += 1


async def _per_task(caller: Program, monitoring: str, pulls: Counter[str], size: Size) -> float:
    before = await _settled(monitoring, pulls)
    await caller.ask("throughput", size.tasks, IN_FLIGHT)
    after = await _settled(monitoring, pulls)
    if after.subscriptions != before.subscriptions:
        raise AssertionError(
            f"Calls leave subscriptions: {before.subscriptions}, then {after.subscriptions}."
        )
    return (after.messages - before.messages) / size.tasks


async def _settled(monitoring: str, pulls: Counter[str]) -> _Counts:
    """The counters, once nothing moves."""
    counts = await _read(monitoring, pulls)
    with anyio.fail_after(30):
        while True:
            await anyio.sleep(_QUIET)
            again = await _read(monitoring, pulls)
            if again == counts:
                return counts
            counts = again


async def _read(monitoring: str, pulls: Counter[str]) -> _Counts:
    body = await anyio.to_thread.run_sync(lambda: urllib.request.urlopen(f"{monitoring}/connz").read())
    told = msgspec.json.decode(body, type=_Connections).connections
    measured = [connection for connection in told if connection.name != _WATCHER]
    return _Counts(
        messages=sum(one.in_msgs + one.out_msgs for one in measured) - pulls["messages"],
        subscriptions=sum(one.subscriptions for one in measured),
    )
