"""What a worker does with one delivery: check it, run its handler, bring it to an end."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import anyio
import anyio.to_thread

from xnai.agents.agent import Agent
from xnai.agents.concluding import Conclusion, Probe, WrongResult
from xnai.agents.isolation import Isolated
from xnai.agents.past import FRESH, Past
from xnai.agents.run import Run
from xnai.agents.skills import Skill
from xnai.agents.streaming import ChunkWriter
from xnai.bus.blobs import has_references
from xnai.bus.bus import Bus
from xnai.bus.ending import CANCELED, deadline_exceeded
from xnai.bus.pull import Delivery
from xnai.protocol import subjects
from xnai.protocol.a2a import Part, TaskState
from xnai.protocol.envelope import Envelope, read_envelope
from xnai.protocol.errors import Busy, GateClosed, InvalidPayload, MalformedMessage, Unavailable
from xnai.protocol.events import ErrorInfo
from xnai.protocol.timestamps import parse_timestamp

log = logging.getLogger(__name__)
DEEPEST = 16
_LATER = 1.0  # seconds before a task that could not be handled for the broker's reasons is tried again
_LATER_WHEN_FULL = 5.0


class Handler:
    """Handles deliveries for one agent's process; `runs` are those at work, by sender and id."""

    def __init__(self, agent: Agent, bus: Bus, state: Any, probe: Probe | None) -> None:
        self.runs: dict[tuple[str, str], Run] = {}
        self.on_full_log: Callable[[str], None] = lambda reason: None
        self._agent, self._bus, self._state, self._probe = agent, bus, state, probe
        self._conclusion = Conclusion(bus, agent.name, probe)
        self._threads = anyio.CapacityLimiter(agent.concurrency)

    async def handle(self, delivery: Delivery, past: Past) -> None:
        """Bring a delivery to its end: its outcome is stored and it is acknowledged, or it is given back."""
        try:
            task = read_envelope(delivery.data, subjects.read_task(delivery.subject))
            deadline = parse_timestamp(task.deadline)
        except MalformedMessage as error:
            await self._guarded(delivery, self._conclusion.bury_bytes(delivery, error))
            return
        try:
            await self._handle(delivery, task, deadline, past)
        except (GateClosed, Unavailable) as error:
            self._refused(delivery, error)

    async def conclude_stuck(self, run: Run) -> None:
        """Decide for a handler that was stopped and goes on all the same: what it says later is dropped."""
        run.over = True
        await self._guarded(run.delivery, self._conclusion.of_stop(run))

    async def _guarded(self, delivery: Delivery, work: Awaitable[None]) -> None:
        try:
            await work
        except (GateClosed, Unavailable) as error:
            self._refused(delivery, error)

    def _refused(self, delivery: Delivery, error: GateClosed | Unavailable) -> None:
        """The broker did not take what we had to say about a task."""
        if isinstance(error, GateClosed):  # it has its outcome; perhaps ours, and the first receipt was lost
            return delivery.ack()
        if isinstance(error, Busy):
            self.on_full_log(str(error))
            return delivery.give_back(_LATER_WHEN_FULL)
        log.warning("a task is given back: %s", error, extra={"subject": delivery.subject})
        delivery.give_back(_LATER)

    async def _handle(self, delivery: Delivery, task: Envelope, deadline: float, past: Past) -> None:
        if self._probe:
            await self._probe("received", task)
        if past.ended:
            return delivery.ack()
        if refusal := self._refusal(task, deadline, past):
            state, error = refusal
            return await self._conclusion.finish(delivery, task, state, error=error)
        skill = self._agent.skills[task.skill]
        if past.recorded and past.attempt > (task.max_attempts or skill.max_attempts):
            return await self._conclusion.exhaust(delivery, task, attempts=past.attempt - 1, error=past.error)
        run = Run(
            self._bus, self._agent.name, skill, delivery, task=task, deadline=deadline, attempt=past.attempt
        )
        if past is not FRESH:
            await run.reporter.working()
            if self._probe:
                await self._probe("working", task)
        try:
            payload = await self._payload(run)
        except (InvalidPayload, MalformedMessage) as error:
            info = ErrorInfo(code="invalid_payload", message=str(error))
            return await self._conclusion.finish(delivery, task, TaskState.REJECTED, error=info, run=run)
        await self._conclude(run, await self._run(run, payload))

    def _refusal(self, task: Envelope, deadline: float, past: Past) -> tuple[TaskState, ErrorInfo] | None:
        """Why a task ends before any work, if it does."""
        if past.canceled:
            return TaskState.CANCELED, CANCELED
        if deadline <= time.time():
            return TaskState.FAILED, deadline_exceeded(task)
        address = f"{task.agent}.{task.skill}"
        if task.skill not in self._agent.skills:
            known = ", ".join(sorted(self._agent.skills)) or "none"
            text = f"There is no {address}: {task.agent} has {known}."
            return TaskState.REJECTED, ErrorInfo(code="unknown_skill", message=text)
        if task.depth > DEEPEST or address in task.ancestors:
            path = " → ".join((*task.ancestors, address))
            return TaskState.REJECTED, ErrorInfo(
                code="loop", message=f"The request goes round in a circle: {path}."
            )
        return None

    async def _payload(self, run: Run) -> Any:
        if run.skill.accepts is None:
            return None
        parts = run.task.message.parts
        if has_references(parts):
            parts = await self._bus.blobs.whole(parts)
        return run.skill.accepts.read(parts, run.task.message)

    async def _run(self, run: Run, payload: Any) -> tuple[Part, ...] | Exception | None:
        """What the handler answers or raises; None when it was stopped."""
        self.runs[run.key] = run
        arguments = run.skill.arguments(payload, run.context(self._state))
        try:
            with run.scope:
                try:
                    return await self._invoke(run, arguments)
                except Exception as error:  # the author's code may raise whatever it likes
                    return error
            return None
        finally:
            if self.runs.get(run.key) is run:
                del self.runs[run.key]

    async def _invoke(self, run: Run, arguments: dict[str, Any]) -> tuple[Part, ...]:
        skill = run.skill
        if skill.streams:
            return await Isolated(_stream(run, arguments))
        if skill.threaded:
            function = functools.partial(_in_thread, run, arguments)
            value = await anyio.to_thread.run_sync(function, abandon_on_cancel=True, limiter=self._threads)
        else:
            value = await Isolated(skill.handler(**arguments))
        return _written(skill, value)

    async def _conclude(self, run: Run, result: tuple[Part, ...] | Exception | None) -> None:
        """Store what became of an attempt, unless that was decided without its handler."""
        if run.over:
            log.warning("what a stopped handler said late is dropped: %s", run)
            return
        run.over = True
        if isinstance(result, tuple):
            await self._conclusion.of_result(run, result)
        elif run.stopped is not None or result is None:
            await self._conclusion.of_stop(run)
        else:
            await self._conclusion.of_error(run, result)


async def _stream(run: Run, arguments: dict[str, Any]) -> tuple[Part, ...]:
    writer = run.writer = ChunkWriter(run.reporter, run.skill.returns)
    try:
        # Closed here and now, whatever stops it: what the handler holds is free before the task is settled.
        async with aclosing(run.skill.handler(**arguments)) as values:
            async for value in values:
                await writer.write(value)
    except InvalidPayload as error:
        raise WrongResult(str(error)) from error
    await writer.flush(last=True)
    run.chunks = writer.count
    return (writer.joined(),)


def _in_thread(run: Run, arguments: dict[str, Any]) -> Any:
    try:
        return run.skill.handler(**arguments)
    finally:
        if run.over:
            log.warning("a thread went on after its task was stopped; its result is dropped: %s", run)


def _written(skill: Skill, value: object) -> tuple[Part, ...]:
    try:
        return skill.returns.write(value)
    except InvalidPayload as error:
        raise WrongResult(str(error)) from error
