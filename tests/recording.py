"""Writing down what is seen of a run: live, by callers, in the log at the end, and by programs that get killed."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
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

from xnai.bus import Bus, Limits, Server, open_bus
from xnai.bus.background import background_tasks
from xnai.bus.client import Frame
from xnai.bus.finding import event_of
from xnai.bus.hearing import is_genuine, sequence_of
from xnai.bus.jetstream import Stored as StoredMessage
from xnai.protocol import Event, Part, Task, TaskArtifactUpdateEvent, TaskFailed, TaskState, XnaiError, subjects
from xnai.protocol.envelope import encode
from xnai.protocol.events import OUTCOME, error_in

CALLER = "caller"
LIVE = "live"
FOLLOWER = "follower"
READY = "ready"
ACK_WAIT = 1.0
LIMITS = Limits(ack_wait=ACK_WAIT)
TIMEOUT = 40.0
_LONGEST_LINE = 1 << 20
Write = Callable[[AnyRecord], None]
_read_record = msgspec.json.Decoder(AnyRecord).decode


def say(record: AnyRecord) -> None:
    """Print a record as one line, at once and in one piece: whoever prints may be killed at any time."""
    os.write(sys.stdout.fileno(), encode(record) + b"\n")


async def ask(bus: Bus, to: str, payload: object, *, id: str, by: str, write: Write) -> None:
    """Call, and write down what came back."""
    write(Asked(id=id, by=by))
    try:
        answer = await bus.call(to, payload, id=id, timeout=TIMEOUT)
    except XnaiError as error:
        write(_failure(id, by, error))
    else:
        write(Returned(id=id, by=by, state=TaskState.COMPLETED, answer=_json(answer)))


async def read(bus: Bus, to: str, payload: object, *, id: str, by: str, write: Write) -> None:
    """Read a stream of numbers, and write down what was handed out."""
    write(Asked(id=id, by=by))
    try:
        async with aclosing(bus.stream(to, payload, int, id=id, timeout=TIMEOUT)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                write(Yielded(id=id, by=by, value=_json(chunk)))
    except XnaiError as error:
        write(_failure(id, by, error))
    else:
        write(Returned(id=id, by=by, state=TaskState.COMPLETED))


async def follow(bus: Bus, id: str, *, by: str, write: Write) -> None:
    """Subscribe to a task, and write down what is heard until its outcome."""
    async with aclosing(bus.subscribe(id)) as events:  # type: ignore[type-var]
        async for event in events:
            write(_heard(id, by, event))
    write(Followed(id=id, by=by))


def _failure(id: str, by: str, error: XnaiError) -> Returned:
    state = error.task.status.state if isinstance(error, TaskFailed) else error.code
    return Returned(id=id, by=by, state=state, answer=error.code)


def _heard(id: str, by: str, event: Event) -> Heard:
    return Heard(id=id, by=by, sequence=event.sequence, kind=event.kind, digest=_digest(event))


def _digest(event: Event) -> str:
    return hashlib.sha256(encode(event.body)).hexdigest()[:16]


def _json(value: object) -> str:
    return encode(value).decode()


def _stored(message: StoredMessage) -> Stored:
    event, id = event_of(message), subjects.read_event(message.subject).id
    facts = event.facts
    stored = Stored(
        id=id,
        sequence=event.sequence,
        kind=event.kind,
        digest=_digest(event),
        attempt=facts.attempt,
        instance=facts.instance,
    )
    replace = msgspec.structs.replace
    if event.kind == OUTCOME and isinstance(event.body, Task):
        state, answer = event.body.status.state, _answer(event.body)
        return replace(stored, state=state, answer=answer, chunks=facts.chunks)
    body = event.body
    if isinstance(body, TaskArtifactUpdateEvent) and body.artifact.artifact_id == f"{id}-{facts.attempt}":
        values = tuple(_value(part) for part in body.artifact.parts)
        return replace(stored, index=facts.index, values=values)
    return stored


def _answer(outcome: Task) -> str:
    if outcome.status.state is TaskState.COMPLETED:
        return _value(outcome.artifacts[0].parts[0])
    error = error_in(outcome.status)
    return error.code if error else ""


def _value(part: Part) -> str:
    return _json(part.text) if part.text is not None else bytes(part.data).decode()


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

    async def until_at(self, by: str, point: str, *, times: int = 1) -> None:
        """Return once the process `by` has come to `point`."""
        await self.until(
            lambda record: isinstance(record, At) and (record.by, record.point) == (by, point), times=times
        )

    async def until_followed(self, by: str) -> None:
        """Return once `by` has heard a whole story."""
        await self.until(lambda record: isinstance(record, Followed) and record.by == by)

    async def until_heard(self, kind: str, *, times: int = 1) -> None:
        """Return once so many events of a kind came live."""
        await self.until(
            lambda record: isinstance(record, Heard) and (record.by, record.kind) == (LIVE, kind), times=times
        )

    async def until_yielded(self, by: str, *, times: int) -> None:
        """Return once `by` was handed so many chunks."""
        await self.until(lambda record: isinstance(record, Yielded) and record.by == by, times=times)

    async def until_asked(self, by: str) -> None:
        """Return once `by` has begun to wait for an answer."""
        await self.until(lambda record: isinstance(record, Asked) and record.by == by)

    async def until_returned(self, by: str, *, times: int = 1) -> None:
        """Return once `by` was told how so many tasks ended."""
        await self.until(lambda record: isinstance(record, Returned) and record.by == by, times=times)

    async def start(self, program: str, by: str, options: object, *, until: str = READY) -> Program:
        """Run a program of this folder until it says that it is at a point, and write down what it prints.

        It ends with the run at the latest.
        """
        process = await anyio.open_process(
            [sys.executable, str(Path(__file__).with_name(program)), by, _json(options)],
            env={**os.environ, "XNAI_URL": self._server.url, "XNAI_TOKEN": self._server.token},
            stdin=PIPE,
            stdout=PIPE,
            stderr=None,
        )
        program = Program(by, process)
        await self.tasks.start(self._listen, program)
        await self.until_at(by, until)
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

    def follow(self, id: str, *, by: str = FOLLOWER) -> None:
        """Subscribe to a task, beside what the test does."""
        self.tasks.start_soon(lambda: follow(self.bus, id, by=by, write=self.write))

    def heard(self, frame: Frame) -> None:
        """Write down what comes live."""
        assert is_genuine(frame)
        message = StoredMessage(subjects.stored_subject(frame.subject), sequence_of(frame), 0.0, frame.data)
        self.write(_heard(subjects.read_event(message.subject).id, LIVE, event_of(message)))

    async def stored(self) -> list[Stored]:
        """All that stands in the log of the agent."""
        log = subjects.log_stream(self._agent)
        return [_stored(message) async for message in self.bus.api.scan(log, subjects.log(self._agent))]

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
        stored = await self.stored()
        followed = [Followed(id=id, by=LIVE) for id in {event.id for event in stored}] if all_heard else []
        return check([*self.records, *stored, *followed], max_attempts=max_attempts)

    def attempts(self, id: str) -> list[int]:
        """The attempts that were started, in the order in which they were heard of."""
        return [record.attempt for record in self.records if isinstance(record, Started) and record.id == id]

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
            async with bus.transport.listen(subjects.live_destination(agent), run.heard):
                await bus.transport.flush()
                with anyio.fail_after(TIMEOUT):
                    yield run
