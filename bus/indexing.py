"""Answering which tasks there are, from an index that follows queues and logs. It runs inside `xnai up`.

Nothing is read while nobody asks. A question first reads what the streams have got since the last one: of
each agent its queue, then its log, because the outcome of a task is stored before the task leaves the queue.
So an answer is right for the moment at which it was asked. SQLite blocks, and works in a thread.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import msgspec
from anyio.to_thread import run_sync

from xnai.bus.asking import answering
from xnai.bus.bus import Bus
from xnai.bus.jetstream import Stored
from xnai.protocol import subjects
from xnai.protocol.envelope import decode, encode
from xnai.protocol.errors import Unavailable, XnaiError
from xnai.protocol.listing import TaskPage, TaskQuery, TaskRow, check_query, cursor_behind

if TYPE_CHECKING:
    from xnai.bus.index import Index, Reach

log = logging.getLogger(__name__)
_AT_ONCE = 256  # messages in one transaction
_SHARE = 2  # of what the server takes in a message: an answer stays under one in so many
_read_query = msgspec.json.Decoder(TaskQuery)


@asynccontextmanager
async def answer_tasks(bus: Bus, file: Path) -> AsyncIterator[None]:
    """Answer whoever asks for tasks while the context is open; the index is kept in `file`."""
    service = TaskService(bus, file)
    try:
        async with answering(bus.transport, subjects.listing("*"), service.answer):
            await bus.transport.flush()
            yield
    finally:
        service.close()


class _State(msgspec.Struct, frozen=True):
    messages: int
    first_seq: int
    last_seq: int


class _Config(msgspec.Struct, frozen=True):
    name: str


class _Stream(msgspec.Struct, frozen=True):
    """A stream as STREAM.LIST describes it."""

    config: _Config
    created: str
    state: _State


class _Pair(msgspec.Struct, frozen=True):
    """The queue and the log of an agent."""

    agent: str
    queue: _Stream
    log: _Stream

    @property
    def made(self) -> str:
        return f"{self.queue.created} {self.log.created}"

    @property
    def removed(self) -> int:
        return self.log.state.last_seq - self.log.state.messages


class TaskService:
    """Answers one question after the other, from the index in `file`."""

    def __init__(self, bus: Bus, file: Path) -> None:
        self._bus, self._file = bus, file
        self._index: Index | None = None
        self._answering = anyio.Lock()

    async def answer(self, tokens: list[str], question: bytes) -> TaskPage:
        """The page that is asked for, by whoever stands in the subject: the broker has checked that.

        Raises:
            MalformedMessage, InvalidArgument: what is asked cannot be.
            Unavailable: the broker does not answer, or the file cannot be used.
        """
        import sqlite3  # here and below: most stacks are never asked, and it takes memory

        from xnai.bus.index import is_spoilt, remove

        query = check_query(decode(_read_query, question))
        async with self._answering:
            try:
                try:
                    return await self._page(tokens[-1], query)
                except sqlite3.DatabaseError as error:
                    if not is_spoilt(error):
                        raise
                    log.warning("the index of tasks is damaged and is made anew: %s", error)
                self.close()
                remove(self._file)
                return await self._page(tokens[-1], query)
            except XnaiError:  # some of them are OSErrors too
                raise
            except (sqlite3.Error, OSError) as error:
                raise Unavailable(f"The index of tasks cannot be used: {error}.") from error

    async def _page(self, asker: str, query: TaskQuery) -> TaskPage:
        index = await self._open()
        await self._follow(index, query.agent)
        sender = None if asker == subjects.EVERYBODY else asker
        found = await run_sync(index.find, query, sender, query.limit + 1)
        rows = self._that_fit(found[: query.limit])
        return TaskPage(tasks=tuple(rows), next=cursor_behind(rows[-1]) if len(rows) < len(found) else None)

    def _that_fit(self, rows: list[TaskRow]) -> list[TaskRow]:
        """As many as one message takes, at least one."""
        room = self._bus.transport.max_payload // _SHARE
        for place, row in enumerate(rows):
            room -= len(encode(row))
            if room < 0:
                return rows[: max(place, 1)]
        return rows

    # The index

    async def _open(self) -> Index:
        from xnai.bus.index import Index, remove

        if self._index is not None and not self._index.is_there():
            self.close()
            remove(self._file)
        if self._index is None:
            self._index = await run_sync(Index, self._file)
        return self._index

    def close(self) -> None:
        if self._index is not None:
            self._index.close()
            self._index = None

    async def _follow(self, index: Index, only: str | None) -> None:
        """Read what the streams have got, of one agent or of all."""
        pairs = await self._pairs()
        reaches = await run_sync(index.reaches)
        for agent in reaches.keys() - pairs.keys():
            await run_sync(index.forget, agent)
        for agent, pair in pairs.items():
            if only is None or agent == only:
                await self._follow_agent(index, pair, reaches.get(agent))

    async def _pairs(self) -> dict[str, _Pair]:
        """The queue and the log of every agent that has both."""
        streams: dict[str, _Stream] = {}
        offset, total = 0, 1
        while offset < total:
            page = await self._bus.api.ask("STREAM.LIST", {"offset": offset})
            listed = msgspec.convert(page.get("streams") or [], list[_Stream])
            if not listed:
                break
            streams |= {stream.config.name: stream for stream in listed}
            offset, total = offset + len(listed), page["total"]
        agents = [
            subjects.agent_of_stream(name) for name in streams if name.startswith(subjects.TASK_STREAM_PREFIX)
        ]
        return {
            agent: _Pair(agent, streams[subjects.task_stream(agent)], streams[subjects.log_stream(agent)])
            for agent in agents
            if subjects.log_stream(agent) in streams
        }

    async def _follow_agent(self, index: Index, pair: _Pair, reach: Reach | None) -> None:
        """Read on where the last question ended; from the start where the streams do not continue that."""
        if reach is not None and not await self._continues(index, pair, reach):
            await run_sync(index.forget, pair.agent)
            reach = None
        await self._read(index, pair, reach)
        count, first = await run_sync(index.open_tasks, pair.agent)
        state = pair.queue.state
        if reach is not None and (count > state.messages or (count and first < state.first_seq)):
            # Some have left the queue, and no outcome tells of them: somebody has removed one or the other.
            await run_sync(index.forget, pair.agent)
            await self._read(index, pair, None)

    async def _continues(self, index: Index, pair: _Pair, reach: Reach) -> bool:
        """Whether the streams go on from where they were read; what the keeper has removed is forgotten."""
        if reach.made != pair.made:
            return False
        if pair.queue.state.last_seq < reach.queue or pair.log.state.last_seq < reach.log:
            return False
        if reach.removed == pair.removed:
            return True
        stream, outcomes = subjects.log_stream(pair.agent), subjects.outcomes(pair.agent)
        oldest, behind = await self._bus.api.first(stream, outcomes)
        first = oldest.sequence if oldest else reach.log + 1
        left = await run_sync(index.remove_before, pair.agent, first)
        return left <= (behind + 1 if oldest else 0)  # the keeper removes the oldest; somebody else may not

    async def _read(self, index: Index, pair: _Pair, reach: Reach | None) -> None:
        """Read the queue up to where it ended when it was looked at, then the log to its end."""
        from xnai.bus.index import Reach

        agent, queue, events = pair.agent, pair.queue.state, pair.log.state
        reach = msgspec.structs.replace(reach or Reach(pair.made), removed=pair.removed)
        reads_queue = queue.messages > 0 and queue.last_seq > reach.queue
        if reads_queue:
            async for some in self._some(subjects.task_stream(agent), subjects.tasks(agent), reach.queue):
                known = [stored for stored in some if stored.sequence <= queue.last_seq]
                if known:
                    reach = msgspec.structs.replace(reach, queue=known[-1].sequence)
                    await run_sync(index.take_queued, agent, reach, known)
                if len(known) < len(some):
                    break
        if reads_queue or events.last_seq > reach.log or reach.log == 0:
            async for some in self._some(subjects.log_stream(agent), subjects.log(agent), reach.log):
                reach = msgspec.structs.replace(reach, log=some[-1].sequence)
                await run_sync(index.take_events, agent, reach, some)

    async def _some(self, stream: str, subject: str, after: int) -> AsyncIterator[list[Stored]]:
        """The messages of a stream beyond a sequence, some at a time."""
        some: list[Stored] = []
        async for stored in self._bus.api.scan(stream, subject, after=after):
            some.append(stored)
            if len(some) >= _AT_ONCE:
                yield some
                some = []
        if some:
            yield some
