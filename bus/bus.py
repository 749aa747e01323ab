"""The caller's side of the bus: send a task, wait for its outcome, follow its story, cancel it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, nullcontext
from types import UnionType
from typing import Any, TypeVar, overload

import anyio
from anyio.abc import TaskGroup

from xnai.bus.asking import ask_keeper
from xnai.bus.background import background_tasks
from xnai.bus.blobs import Blobs, has_references
from xnai.bus.chunks import ChunkReader
from xnai.bus.ending import CANCELED, Owner
from xnai.bus.finding import Finder, Found, as_task
from xnai.bus.hearing import Hearing
from xnai.bus.jetstream import JetStream
from xnai.bus.leaving import CANCEL_GRACE, Leaving, time_left
from xnai.bus.listing import TaskList
from xnai.bus.locating import Address, reach, sender_name
from xnai.bus.open_calls import OpenCall, OpenCalls
from xnai.bus.publisher import PUBLISH_TIMEOUT, Publisher
from xnai.bus.sending import Order, Sender, Sent
from xnai.bus.stories import Storyteller
from xnai.bus.streams import DAY, Limits, declare_agent, declare_shared
from xnai.bus.transport import Transport
from xnai.protocol import subjects
from xnai.protocol.a2a import Task, TaskState
from xnai.protocol.envelope import Envelope
from xnai.protocol.errors import (
    InvalidPayload,
    InvalidResult,
    TaskNotCancelable,
    Unavailable,
    UnknownTask,
)
from xnai.protocol.events import Event, as_exception, facts_of
from xnai.protocol.names import check_id, check_name, new_instance
from xnai.protocol.payload import codec_of, is_union

T = TypeVar("T")
CALL_TIMEOUT = 30.0
STREAM_TIMEOUT = 900.0
TASK_TTL = 3 * DAY
_GRACE = 1.0  # seconds that a worker has to write the outcome once the deadline has passed


def _always() -> bool:
    return True


@asynccontextmanager
async def open_bus(
    at: str | Address | None = None, *, name: str | None = None, token: str | None = None, wait: float = 0.0
) -> AsyncIterator[Bus]:
    """Join the bus.

    Args:
        at: the URL of the broker, or with its key and certificate an `Address`; otherwise `XNAI_URL`,
            otherwise the stack whose `.xnai/` folder is nearest, in the working folder or above it.
        name: of the sender; otherwise `XNAI_NAME`, otherwise the login name.
        token: that the broker at a URL wants; with `XNAI_URL` it is `XNAI_TOKEN`, or `XNAI_KEY` names a key.
            A stack's folder holds its own keys.
        wait: seconds to wait for a bus that is coming up.

    Raises:
        NoBus: there is none, or nothing answers.
        NotAllowed: the token is wrong, or `name` has no key that the broker takes.
        ServerTooOld: the server is older than 2.12.
    """
    sender = sender_name(name)
    at = Address(url=at, token=token) if isinstance(at, str) else at
    async with AsyncExitStack() as stack:
        transport = await stack.enter_async_context(reach(at, name=sender, wait=wait))
        own = await stack.enter_async_context(background_tasks())
        # Last words of callers that leave still need the publisher: their group ends first.
        leaving = await stack.enter_async_context(background_tasks())
        bus = Bus(transport, sender, leaving)
        await own.start(bus.publisher.run)
        await stack.enter_async_context(bus.hearing.open())
        own.start_soon(bus.calls.read_after_reconnects)
        yield bus


class Bus:
    """One member of the bus, known as `name`; open it with `open_bus`.

    `await bus.tasks(agent=…, state=…, …)` lists the tasks that it sent: see `xnai.bus.listing.TaskList`.
    """

    def __init__(self, transport: Transport, name: str, tasks: TaskGroup) -> None:
        self.name = name
        self.instance = new_instance()
        self.transport = transport
        self.api = JetStream(transport)
        self.publisher = Publisher(transport)
        self.blobs = Blobs(self.api, self.publisher, name)
        self.hearing = Hearing(transport, name, self.instance)
        self.finder = Finder(self.api, name)
        self.owner = Owner(self.publisher, self.finder, self.blobs, name)
        self.tasks = TaskList(transport, name)
        self.calls = OpenCalls(transport, self.api, self.hearing)
        self._leaving = Leaving(self.owner, tasks)
        self.sender = Sender(self)
        self._stories = Storyteller(transport, self.finder, self.hearing)

    async def declare(self, agent: str, limits: Limits | None = None) -> None:
        """Make the queue and the log of an agent, so that tasks can wait for it. They stay.

        Where a broker knows us by our key, its keeper makes them, with the limits of its own settings.

        Raises:
            Busy: the server's storage cannot reserve what the limits ask for.
            NotAllowed: we do not serve that agent.
        """
        if self.transport.confined:
            await ask_keeper(self.transport, subjects.declaring(check_name(agent, "agent name")))
            return
        limits = limits or Limits()
        await declare_shared(self.api, limits)
        await declare_agent(self.api, check_name(agent, "agent name"), limits)

    @overload
    async def call(
        self,
        to: str,
        payload: object,
        returns: type[T],
        *,
        timeout: float = ...,
        lane: str = ...,
        id: str | None = ...,
        context: str | None = ...,
    ) -> T: ...
    @overload
    async def call(
        self,
        to: str,
        payload: object = ...,
        *,
        timeout: float = ...,
        lane: str = ...,
        id: str | None = ...,
        context: str | None = ...,
    ) -> Any: ...
    async def call(
        self,
        to: str,
        payload: object = None,
        returns: Any = Any,
        *,
        timeout: float = CALL_TIMEOUT,
        lane: str = "normal",
        id: str | None = None,
        context: str | None = None,
    ) -> Any:
        """Ask `to` ("agent.skill") and wait for the answer, read as `returns`.

        The task's deadline is `timeout` seconds from now. A caller that leaves before cancels the task.

        Raises:
            TaskFailed: the task ended in another state; its subclass DeadlineExceeded is also a TimeoutError.
            CallTimeout: the deadline passed, and the broker cannot be asked how the task ended.
            InvalidResult: the answer does not fit `returns`.
            InvalidPayload: the payload cannot be sent.
            UnknownAgent: no such agent was ever declared.
            Unavailable, Busy: the broker did not confirm the task, or has no room for it.
            IdConflict: `id` belongs to another task.
        """
        order = await self.sender.order(to, payload, lane=lane, ttl=timeout, id=id, context=context)
        return await self.answer(await self.run(order), returns)

    async def run(self, order: Order, *, abandon: Callable[[], bool] = _always) -> Task:
        """Send a task and wait for its outcome, whatever it is. Raises as `call` does, but for TaskFailed.

        A caller that leaves cancels the task, unless `abandon` says that somebody else waits for it.
        """
        task = self.sender.envelope(order)
        with self.calls.open(task) as call:
            try:
                sent = await self._send(order, task)
                task = call.task = sent.task
                if sent.outcome is not None:
                    return sent.outcome
                if sent.instance != self.instance:
                    return await self._join(task, call)
                return await self._outcome(task, call)
            except anyio.get_cancelled_exc_class():
                if abandon():
                    self._leaving.leave(task)
                raise

    async def _send(self, order: Order, task: Envelope) -> Sent:
        """Send a task whose outcome is waited for."""
        patience = min(PUBLISH_TIMEOUT, max(0.0, time_left(task)) + _GRACE)
        return await self.sender.send(task, look_first=order.given, anywhere=order.anywhere, timeout=patience)

    async def _join(self, task: Envelope, call: OpenCall) -> Task:
        """Wait for a task that another bus has sent: hear it first, then read, then wait."""
        async with self.hearing.listen_elsewhere(task.id):
            stored = await self.finder.outcome(task.agent, task.id, sender=task.sender)
            return stored or await self._outcome(task, call)

    async def _outcome(self, task: Envelope, call: OpenCall) -> Task:
        try:
            return await call.outcome(max(0.0, time_left(task)) + _GRACE)
        except TimeoutError:
            return await self._leaving.give_up(task)

    async def answer(self, outcome: Task, returns: Any) -> Any:
        """What a completed task returned, read as `returns`.

        Raises:
            TaskFailed: it did not complete.
            InvalidResult: it returned something else.
        """
        if outcome.status.state is not TaskState.COMPLETED:
            raise as_exception(outcome)
        if not outcome.artifacts:
            raise InvalidResult(f"The task {outcome.id} completed without an answer.")
        parts = outcome.artifacts[0].parts
        if has_references(parts):
            parts = await self.blobs.whole(parts)
        try:
            return codec_of(returns).read(parts)
        except InvalidPayload as error:
            raise InvalidResult(f"The answer of {outcome.id} is of another type. {error}") from error

    async def send(
        self,
        to: str,
        payload: object = None,
        *,
        lane: str = "normal",
        ttl: float = TASK_TTL,
        id: str | None = None,
        context: str | None = None,
    ) -> str:
        """Store a task for `to` ("agent.skill") and return its id: from then on it is safe.

        Its deadline is `ttl` seconds from now, 30 days at most. The same `id` is one task for as long as its
        log is kept: sending it again is harmless.

        Raises:
            UnknownAgent, Busy, InvalidPayload, IdConflict: as for `call`; nothing was sent.
            Unavailable: not confirmed. It may have been sent: try again, with the same id.
        """
        order = await self.sender.order(to, payload, lane=lane, ttl=ttl, id=id, context=context)
        task = self.sender.envelope(order)
        sent = await self.sender.send(task, look_first=order.given, anywhere=order.anywhere)
        return sent.task.id

    async def task(self, id: str) -> Task:
        """Where a task stands: its state, its artifacts so far, and the request as its history.

        Raises:
            UnknownTask: no task of ours has this id, or it ended more than a week ago.
        """
        found = await self.found(id)
        return await self.blobs.whole_task(found.outcome or as_task(found, await self.finder.story(found)))

    async def found(self, id: str) -> Found:
        """The task with this id, as the broker holds it; raises UnknownTask."""
        if found := await self.finder.find(check_id(id)):
            return found
        raise UnknownTask(f"No task of {self.name} with the id {id} is queued or remembered.")

    async def subscribe(self, id: str, *, after: int = 0) -> AsyncGenerator[Event, None]:
        """Every event of a task's log beyond the sequence `after`, then live; ends behind the outcome.

        Raises:
            UnknownTask: no task of ours has this id.
        """
        async with aclosing(self._stories.tell(await self.found(id), after=after)) as events:
            async for event in events:
                yield await self.blobs.whole_event(event)

    @overload
    def stream(
        self,
        to: str,
        payload: object,
        returns: type[T],
        *,
        timeout: float = ...,
        lane: str = ...,
        id: str | None = ...,
        context: str | None = ...,
    ) -> AsyncGenerator[T, None]: ...
    @overload
    def stream(
        self,
        to: str,
        payload: object,
        returns: UnionType,
        *,
        timeout: float = ...,
        lane: str = ...,
        id: str | None = ...,
        context: str | None = ...,
    ) -> AsyncGenerator[Any, None]: ...
    async def stream(
        self,
        to: str,
        payload: object,
        returns: Any,
        *,
        timeout: float = STREAM_TIMEOUT,
        lane: str = "normal",
        id: str | None = None,
        context: str | None = None,
    ) -> AsyncGenerator[Any, None]:
        """What the skill `to` yields, each chunk once, as it comes. A reader that leaves cancels the task.

        A skill may have a whole beside its chunks (`xnai.agents.Whole`): where `returns` is a union that has
        room for it, as `str | Answer`, it comes last.

        Raises:
            StreamChanged: after a crash, the new attempt yields something else than was handed out.
            TaskFailed and the others: as for `call`. After Unavailable the task goes on: its `id` reads it.
        """
        order = await self.sender.order(to, payload, lane=lane, ttl=timeout, id=id, context=context)
        async with aclosing(self.run_stream(order, returns)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def run_stream(
        self, order: Order, returns: Any, *, abandon: Callable[[], bool] = _always
    ) -> AsyncGenerator[Any, None]:
        """As `stream`, for an order that is made already."""
        task = self.sender.envelope(order)
        reader = ChunkReader[Any](task.id, task.agent, self.blobs, codec_of(returns))
        async with AsyncExitStack() as stack:
            stack.push(
                lambda _, why, __: None if reader.outcome or not abandon() else self._leaving.leave(task, why)
            )
            stack.enter_context(self.hearing.listen(task.id, reader.take))
            stack.enter_context(self.transport.when_lost(reader.read_again))
            sent = await self._send(order, task)
            task = sent.task
            reader.agent = task.agent
            if sent.instance != self.instance:
                await stack.enter_async_context(self.hearing.listen_elsewhere(task.id))
            if sent.found:
                reader.read_again()
            while reader.outcome is None:
                await self._hear_more(reader, sent)
                async with aclosing(reader.chunks()) as chunks:
                    async for value in chunks:
                        yield value
        if reader.outcome.status.state is not TaskState.COMPLETED:
            raise as_exception(reader.outcome)
        if not reader.streamed:  # the skill returns one value: that is the only chunk
            yield await self.answer(reader.outcome, returns)
        elif facts_of(reader.outcome).whole and is_union(returns):
            try:
                whole = await self.answer(reader.outcome, returns)
            except InvalidResult:  # of no type that was asked for: the chunks are all
                return
            yield whole

    async def _hear_more(self, reader: ChunkReader[Any], sent: Sent) -> None:
        with anyio.move_on_after(max(0.0, time_left(sent.task)) + _GRACE) as scope:
            await reader.wait()
            if reader.must_read:
                try:
                    await reader.read_log(self.finder, sent.task)
                except Unavailable:
                    if self.transport.connected:
                        raise
        if scope.cancelled_caught:
            reader.outcome = await self._leaving.give_up(sent.task)

    async def cancel(self, id: str, *, reason: str = "canceled by its owner") -> Task:
        """Cancel a task and return its outcome. The worker has two seconds to stop.

        Raises:
            UnknownTask: no task of ours has this id.
            TaskNotCancelable: it has ended.
            Unavailable: the broker did not confirm it.
        """
        found = await self.found(id)
        if found.queued is None:
            raise TaskNotCancelable(f"The task {id} has ended and cannot be canceled.")
        task = found.queued[0]
        with self.calls.open(task) as call:
            hearing = nullcontext() if task.instance == self.instance else self.hearing.listen_elsewhere(id)
            async with hearing:
                await self.owner.cancel(task, reason)
                try:
                    return await call.outcome(CANCEL_GRACE)
                except TimeoutError:
                    return await self.owner.end(task, TaskState.CANCELED, CANCELED)
