"""A steady load of tasks through a whole day, whose fate is written down, and the agents that work on it.

The caller is one that does not give up: what the broker did not confirm it asks for again, with the same id.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import TypeVar

import anyio
import msgspec
from history import AnyRecord, Asked, Fault, Followed, Returned, Sent, Started, Stored, Yielded, check
from terminal import PATIENCE
from witness import CALLER, as_json, failure, heard, stored

from xnai.bus import Bus, open_bus
from xnai.bus.background import background_tasks
from xnai.bus.locating import Address
from xnai.protocol import TaskState, Unavailable, XnaiError, subjects
from xnai.protocol.errors import TaskNotCancelable

T = TypeVar("T")
AGENTS = ("hello", "clerk", "chief")
ROLE = "desk"
LIFE = 600.0  # seconds that a task may take: a bound for what hangs
CHUNKS = 5
_EFFECTS = "effects.jsonl"
_FOLLOWER = "follower"
_TRY_AGAIN = 0.05
_STARTED = msgspec.json.Decoder(Started).decode

_MODULE = """\
import json
import os
from collections.abc import AsyncIterator

import anyio

from xnai.agents import Agent, Context

effects = os.open("effects.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def begin(ctx: Context) -> str:
    pid = os.getpid()
    record = {"type": "Started", "id": ctx.task.id, "by": str(pid), "attempt": ctx.attempt}
    os.write(effects, json.dumps(record).encode() + b"\\n")
    return f"by {pid} in attempt {ctx.attempt}"
"""
_CLERK = """
agent = Agent("clerk", roles=["desk"])


@agent.skill
async def work(n: int, ctx: Context) -> str:
    by = begin(ctx)
    await anyio.sleep(0.4)
    return f"{n} {by}"


@agent.skill
async def rest(seconds: float, ctx: Context) -> None:
    begin(ctx)
    await ctx.progress("resting")
    await anyio.sleep(seconds)
"""
_CHIEF = """
agent = Agent("chief")


@agent.skill
async def manage(n: int, ctx: Context) -> str:
    by = begin(ctx)
    greeting = await ctx.call("hello.greet", str(n), str, timeout=600)
    work = await ctx.call("desk.work", n, str, timeout=600)
    return f"{greeting} {work}, managed {by}"


@agent.skill
async def count(n: int, ctx: Context) -> AsyncIterator[int]:
    begin(ctx)
    for number in range(n):
        yield number
        await anyio.sleep(0.1)
"""


def write_clerk(folder: Path) -> None:
    """An agent with a role, that works and rests."""
    (folder / "clerk.py").write_text(_MODULE + _CLERK)


def write_chief(folder: Path) -> None:
    """An agent that streams, and that has others do its work."""
    (folder / "chief.py").write_text(_MODULE + _CHIEF)


def effects(folder: Path) -> list[Started]:
    """What the handlers of the agents in a folder have begun."""
    file = folder / _EFFECTS
    return [_STARTED(line) for line in file.read_bytes().splitlines()] if file.exists() else []


class Load:
    """Tasks of all kinds, of each kind one after another, until told to stop.

    Attributes:
        records: what the caller and the follower have seen.
        wanted: how each task that has ended was to end.
    """

    def __init__(self, bus: Bus) -> None:
        self.records: list[AnyRecord] = []
        self.wanted: dict[str, TaskState] = {}
        self._bus = bus
        self._numbers = itertools.count()
        self._news = anyio.Event()
        self._stopping = False
        self._cancelled = 0
        self._at_work = 0

    async def run(self, kind: Callable[[str, int], Awaitable[TaskState]]) -> None:
        """Keep one kind of tasks coming."""
        self._at_work += 1
        while not self._stopping:
            number = next(self._numbers)
            id = f"task-{number}"
            self.wanted[id] = await kind(id, number)
            self._tell()
        self._at_work -= 1
        self._tell()

    async def goes_on(self, tasks: int = 10) -> None:
        """Return once so many more tasks have ended."""
        goal = len(self.wanted) + tasks
        with anyio.fail_after(PATIENCE):
            while len(self.wanted) < goal:
                await self._news.wait()

    async def stop(self) -> None:
        """Begin no more, and return when all have ended."""
        self._stopping = True
        with anyio.fail_after(PATIENCE):
            while self._at_work:
                await self._news.wait()

    # Kinds of tasks

    async def call(self, id: str, number: int) -> TaskState:
        await self._ask("clerk.work", number, id)
        return TaskState.COMPLETED

    async def call_role(self, id: str, number: int) -> TaskState:
        await self._ask(f"{ROLE}.work", number, id)
        return TaskState.COMPLETED

    async def manage(self, id: str, number: int) -> TaskState:
        await self._ask("chief.manage", number, id)
        return TaskState.COMPLETED

    async def read(self, id: str, number: int) -> TaskState:
        self._write(Asked(id=id, by=CALLER))
        chunks = list[int]()

        async def read_all() -> None:
            chunks.clear()
            stream = self._bus.stream("chief.count", CHUNKS, int, id=id, timeout=LIFE)
            async with aclosing(stream) as values:
                async for value in values:
                    chunks.append(value)

        await self._told(id, read_all)
        for value in chunks:
            self._write(Yielded(id=id, by=CALLER, value=as_json(value)))
        return TaskState.COMPLETED

    async def send(self, id: str, number: int) -> TaskState:
        await self._send("clerk.work", number, id)
        await self._follow(id, anyio.Event())
        return TaskState.COMPLETED

    async def cancel(self, id: str, number: int) -> TaskState:
        """Half of them when their handlers have begun, and half at once, where they may still wait."""
        await self._send("clerk.rest", LIFE, id)
        begun = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._follow, id, begun)
            if self._cancelled % 2:
                await begun.wait()
            await self._cancel(id)
        self._cancelled += 1
        await self.call(f"{id}-after", number)
        return TaskState.CANCELED

    async def _ask(self, to: str, payload: object, id: str) -> None:
        self._write(Asked(id=id, by=CALLER))
        await self._told(id, lambda: self._bus.call(to, payload, str, id=id, timeout=LIFE))

    async def _told(self, id: str, do: Callable[[], Awaitable[str | None]]) -> None:
        try:
            answer = await _insist(do)
        except XnaiError as error:
            self._write(failure(id, CALLER, error))
        else:
            said = "" if answer is None else as_json(answer)
            self._write(Returned(id=id, by=CALLER, state=TaskState.COMPLETED, answer=said))

    async def _send(self, to: str, payload: object, id: str) -> None:
        await _insist(lambda: self._bus.send(to, payload, id=id, ttl=LIFE))
        self._write(Sent(id=id))

    async def _follow(self, id: str, begun: anyio.Event) -> None:
        after = 0

        async def hear_on() -> None:
            nonlocal after
            async with aclosing(self._bus.subscribe(id, after=after)) as events:
                async for event in events:
                    self._write(heard(id, _FOLLOWER, event))
                    after = event.sequence
                    begun.set()

        await _insist(hear_on)
        self._write(Followed(id=id, by=_FOLLOWER))

    async def _cancel(self, id: str) -> None:
        """The first try may have been heard, though it was not confirmed."""
        try:
            await _insist(lambda: self._bus.cancel(id))
        except TaskNotCancelable:
            return

    def _write(self, record: AnyRecord) -> None:
        self.records.append(record)

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()


async def _insist(do: Callable[[], Awaitable[T]]) -> T:
    while True:
        try:
            return await do()
        except Unavailable:
            await anyio.sleep(_TRY_AGAIN)


@asynccontextmanager
async def load(bus: Bus) -> AsyncIterator[Load]:
    """A load on `bus` while the context is open."""
    async with background_tasks() as tasks:
        whole = Load(bus)
        for kind in (whole.call, whole.call_role, whole.manage, whole.read, whole.send, whole.cancel):
            tasks.start_soon(whole.run, kind)
        yield whole


async def stored_events(at: Address) -> list[Stored]:
    """All that stands in the logs of the agents, read as the keeper, who alone may."""
    async with open_bus(at.as_system(), name="auditor") as bus:
        return [
            stored(message)
            for agent in (*AGENTS, ROLE)
            async for message in bus.api.scan(subjects.log_stream(agent), subjects.log(agent))
        ]


def faults(seen: Load, log: list[Stored], *folders: Path) -> list[Fault]:
    """What the checker says of what callers saw, handlers did and logs hold."""
    begun = [record for folder in folders for record in effects(folder)]
    return check([*seen.records, *begun, *log])
