"""A run on a real broker: programs that get killed, what is seen of them, and what the checker says."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE

import anyio
import msgspec
from anyio.abc import Process, TaskGroup
from anyio.streams.buffered import BufferedByteReceiveStream
from history import (
    AnyRecord,
    Asked,
    At,
    Fault,
    Followed,
    Heard,
    Killed,
    Returned,
    Sent,
    Started,
    Stored,
    Yielded,
    check,
)
from witness import CALLER, LIMITS, READY, TIMEOUT, ask, follow, heard, read, stored

from xnai.bus import Bus, Server, open_bus
from xnai.bus.background import background_tasks
from xnai.bus.finding import event_of
from xnai.bus.hearing import is_genuine, sequence_of
from xnai.bus.jetstream import Stored as StoredMessage
from xnai.bus.parser import Frame
from xnai.protocol import subjects
from xnai.protocol.envelope import encode
from xnai.protocol.events import OUTCOME

LIVE = "live"
FOLLOWER = "follower"
ENDED = "ended"
_LONGEST_LINE = 1 << 20
_read_record = msgspec.json.Decoder(AnyRecord).decode


class Program:
    """A process that prints records. `by` is its name in them."""

    def __init__(self, by: str, process: Process) -> None:
        self.by, self.process = by, process
        self.heard_out = anyio.Event()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Its exit status, once it has ended and all that it said is written down."""
        await self.heard_out.wait()
        return await self.process.wait()

    async def tell(self) -> None:
        """Let it go on from where it waits to be told."""
        assert self.process.stdin is not None
        await self.process.stdin.send(b"\n")


class Recording:
    """A run on one broker: who takes part, and what was seen.

    Attributes:
        bus: of the caller.
        tasks: what lives as long as the run.
    """

    def __init__(self, server: Server, agent: str, bus: Bus, tasks: TaskGroup) -> None:
        self.bus, self.tasks = bus, tasks
        self.records: list[AnyRecord] = []
        self._server, self._agent = server, agent
        self._news = anyio.Event()

    def write(self, record: AnyRecord) -> None:
        self.records.append(record)
        self._news.set()
        self._news = anyio.Event()

    async def until(self, seen: Callable[[AnyRecord], bool], *, times: int = 1) -> None:
        """Return once as many records as that satisfy `seen`, those of the past included."""
        looked_at = 0
        while True:
            while looked_at < len(self.records):
                times -= seen(self.records[looked_at])
                looked_at += 1
                if times <= 0:
                    return
            await self._news.wait()

    async def until_at(self, by: str, point: str, *, or_at: str = "") -> None:
        """Return once the process `by` has come to `point`, or to the other one."""
        await self.until(
            lambda record: isinstance(record, At) and record.by == by and record.point in (point, or_at)
        )

    async def until_followed(self, *, times: int = 1) -> None:
        """Return once the follower has heard so many whole stories."""
        await self.until(lambda record: isinstance(record, Followed) and record.by == FOLLOWER, times=times)

    async def until_heard(self, kind: str, *, times: int = 1) -> None:
        """Return once so many events of a kind came live."""
        await self.until(
            lambda record: isinstance(record, Heard) and (record.by, record.kind) == (LIVE, kind), times=times
        )

    async def until_yielded(self, by: str, *, times: int) -> None:
        """Return once `by` was handed so many chunks."""
        await self.until(lambda record: isinstance(record, Yielded) and record.by == by, times=times)

    async def first_at(self, point: str, programs: Sequence[Program]) -> Program:
        """The first of some programs that has come to `point`, once one has."""
        names = [program.by for program in programs]
        await self.until(
            lambda record: isinstance(record, At) and record.point == point and record.by in names
        )
        arrived = [record.by for record in self.records if isinstance(record, At) and record.point == point]
        return next(program for program in programs if program.by in arrived)

    async def until_asked(self, by: str) -> None:
        """Return once `by` has begun to wait for an answer."""
        await self.until(lambda record: isinstance(record, Asked) and record.by == by)

    async def until_returned(self, by: str, *, times: int = 1) -> None:
        """Return once `by` was told how so many tasks ended."""
        await self.until(lambda record: isinstance(record, Returned) and record.by == by, times=times)

    async def start(self, file: str, by: str, options: object, *, until: str = READY) -> Program:
        """Run a program of this folder until it says that it is at a point, and write down what it prints.

        It ends with the run at the latest.
        """
        process = await anyio.open_process(
            [sys.executable, str(Path(__file__).with_name(file)), by, encode(options).decode()],
            env={**os.environ, "XNAI_URL": self._server.url, "XNAI_TOKEN": self._server.token},
            stdin=PIPE,
            stdout=PIPE,
            stderr=None,
        )
        program = Program(by, process)
        await self.tasks.start(self._listen, program)
        await self.until_at(by, until, or_at=ENDED)
        seen = [record.point for record in self.records if isinstance(record, At) and record.by == by]
        assert until in seen, f"{by} has ended, and was not {until} before"
        return program

    async def _listen(self, program: Program, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        process = program.process
        assert process.stdout is not None
        async with process:
            try:
                task_status.started()
                lines = BufferedByteReceiveStream(process.stdout)
                while True:
                    self.write(_read_record(await lines.receive_until(b"\n", _LONGEST_LINE)))
            except (anyio.EndOfStream, anyio.IncompleteRead):  # it has ended, perhaps within a line
                return
            finally:
                program.heard_out.set()
                self.write(At(id="", by=program.by, point=ENDED))
                if process.returncode is None:
                    process.kill()

    async def kill(self, program: Program) -> None:
        """End a process with SIGKILL."""
        program.signal(signal.SIGKILL)
        await program.ended()
        self.write(Killed(id="", by=program.by))

    async def until_died(self, program: Program) -> None:
        """Return once a process has killed itself."""
        assert await program.ended() == -signal.SIGKILL
        self.write(Killed(id="", by=program.by))

    async def end(self, program: Program) -> None:
        """End a process with SIGTERM: on return it has left in order."""
        program.signal(signal.SIGTERM)
        assert await program.ended() == 0

    async def send(self, to: str, payload: object, *, id: str) -> None:
        await self.bus.send(to, payload, id=id, ttl=TIMEOUT)
        self.write(Sent(id=id))

    def ask(self, to: str, payload: object, *, id: str, by: str = CALLER) -> None:
        """Call, beside what the test does."""
        self.tasks.start_soon(lambda: ask(self.bus, to, payload, id=id, by=by, write=self.write))

    def read(self, to: str, payload: object, *, id: str, by: str = CALLER) -> None:
        """Read a stream, beside what the test does."""
        self.tasks.start_soon(lambda: read(self.bus, to, payload, id=id, by=by, write=self.write))

    def follow(self, id: str) -> None:
        """Subscribe to a task, beside what the test does."""
        self.tasks.start_soon(lambda: follow(self.bus, id, by=FOLLOWER, write=self.write))

    async def send_and_ask(self, to: str, payload: object, *, id: str, streams: bool, followed: bool) -> None:
        """Send a task, then wait for its answer beside what the test does."""
        await self.send(to, payload, id=id)
        (self.read if streams else self.ask)(to, payload, id=id)
        if followed:
            self.follow(id)

    def hear(self, frame: Frame) -> None:
        """Write down what comes live."""
        assert is_genuine(frame)
        message = StoredMessage(subjects.stored_subject(frame.subject), sequence_of(frame), 0.0, frame.data)
        self.write(heard(subjects.read_event(message.subject).id, LIVE, event_of(message)))

    async def stored(self) -> list[Stored]:
        """All that stands in the log of the agent."""
        log = subjects.log_stream(self._agent)
        return [stored(message) async for message in self.bus.api.scan(log, subjects.log(self._agent))]

    async def outcome(self, id: str) -> Stored:
        """The one outcome of a task."""
        (outcome,) = [event for event in await self.stored() if event.id == id and event.kind == OUTCOME]
        return outcome

    async def faults(self, *, all_heard: bool = True, max_attempts: int = 5) -> list[Fault]:
        """What `check` says about the run, with what is stored now.

        Args:
            all_heard: the broker stayed up, so that the live listener may have missed nothing.
            max_attempts: how often a task may be tried.
        """
        log = await self.stored()
        followed = [Followed(id=id, by=LIVE) for id in {event.id for event in log}] if all_heard else []
        return check([*self.records, *log, *followed], max_attempts=max_attempts)

    def attempts(self, id: str) -> list[int]:
        """The attempts that were started, in the order in which they were heard of."""
        return [record.attempt for record in self.records if isinstance(record, Started) and record.id == id]

    async def until_empty(self) -> None:
        """Return once no task is in the queue."""
        while await self.queued():  # noqa: ASYNC110  # the broker tells nobody
            await anyio.sleep(0.02)

    async def queued(self) -> int:
        """How many tasks wait in the queue or are in the hands of a worker."""
        info = await self.bus.api.stream_info(subjects.task_stream(self._agent))
        count: int = info["state"]["messages"]
        return count


@asynccontextmanager
async def recording(server: Server, agent: str) -> AsyncIterator[Recording]:
    """A run in which `agent` is declared, and everything that comes live is written down."""
    async with open_bus(server.url, token=server.token, name=CALLER) as bus:
        await bus.declare(agent, LIMITS)
        async with background_tasks() as tasks:
            run = Recording(server, agent, bus, tasks)
            async with bus.transport.listen(subjects.live_destination(agent), run.hear):
                await bus.transport.flush()
                with anyio.fail_after(TIMEOUT):
                    yield run
