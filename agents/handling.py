"""What a worker does with one delivery: check it, run its handler, bring it to an end."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec

from xnai.agents.agent import Agent
from xnai.agents.concluding import Conclusion, Probe, WrongResult
from xnai.agents.isolation import Isolated
from xnai.agents.past import FRESH, Past
from xnai.agents.run import Run, Slot
from xnai.agents.skills import Skill
from xnai.agents.streaming import ChunkWriter
from xnai.bus.blobs import PartGone, has_references
from xnai.bus.bus import Bus
from xnai.bus.ending import CANCELED, deadline_exceeded
from xnai.bus.pull import Delivery
from xnai.bus.sending import LONGEST_TTL
from xnai.protocol.a2a import Part, TaskState
from xnai.protocol.envelope import Envelope, read_envelope
from xnai.protocol.errors import Busy, GateClosed, InvalidPayload, MalformedMessage, Unavailable, XnaiError
from xnai.protocol.events import ErrorInfo
from xnai.protocol.names import nearest
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
        self.tally = self._conclusion.tally
        self._threads = anyio.CapacityLimiter(agent.concurrency)

    async def handle(self, delivery: Delivery, past: Past, slot: Slot) -> None:
        """Bring a delivery to its end: its outcome is stored and it is acknowledged, or it is given back.

        When the handler is stopped, the slot's scope ends this; `conclude_stopped` does the rest.
        """
        try:
            task = read_envelope(delivery.data, delivery.about)
            deadline = min(parse_timestamp(task.deadline), delivery.stored_at + LONGEST_TTL)
        except MalformedMessage as error:
            return await self.bury(delivery, error)
        try:
            run = await self._begin(delivery, past, slot, task=task, deadline=deadline)
            if run is not None:
                await self._finish(run, slot)
        except (GateClosed, Unavailable, InvalidPayload) as error:
            self._refused(delivery, error)

    async def bury(self, delivery: Delivery, error: MalformedMessage) -> None:
        """Keep a message that is none as a dead letter."""
        await self._guarded(delivery, self._conclusion.bury_bytes(delivery, error))

    async def conclude_stopped(self, run: Run) -> None:
        """Decide for a handler that was stopped; what it may say later is dropped."""
        if run.over:
            log.warning("what a stopped handler said late is dropped: %s", run)
            return
        run.over = True
        await self._guarded(run.delivery, self._conclusion.of_stop(run))

    async def _guarded(self, delivery: Delivery, work: Awaitable[None]) -> None:
        try:
            await work
        except (GateClosed, Unavailable, InvalidPayload) as error:
            self._refused(delivery, error)

    def _refused(self, delivery: Delivery, error: XnaiError) -> None:
        """The broker did not take what we had to say about a task."""
        if isinstance(error, GateClosed):  # it has its outcome; perhaps ours, and the first receipt was lost
            return delivery.ack()
        if isinstance(error, Busy):
            self.on_full_log(str(error))
            return delivery.give_back(_LATER_WHEN_FULL)
        log.warning("a task is given back: %s", error, extra={"subject": delivery.subject})
        delivery.give_back(_LATER)

    async def _begin(
        self, delivery: Delivery, past: Past, slot: Slot, *, task: Envelope, deadline: float
    ) -> Run | None:
        """The attempt to make, on record where it must be; None when the task ends without one."""
        if self._probe:
            await self._probe("received", task)
        if past.ended:
            delivery.ack()
            return None
        if refusal := self._refusal(task, deadline, past):
            state, error = refusal
            await self._conclusion.finish(delivery, task, state, error=error)
            return None
        skill = self._agent.skills[task.skill]
        if past.recorded and past.attempt > (task.max_attempts or skill.max_attempts):
            await self._conclusion.exhaust(delivery, task, attempts=past.attempt - 1, error=past.error)
            return None
        run = Run(
            self._bus,
            self._agent.name,
            skill,
            delivery,
            scope=slot.scope,
            task=task,
            deadline=deadline,
            attempt=past.attempt,
            fresh=past is FRESH,
        )
        if past is not FRESH:
            await run.reporter.working()
            if self._probe:
                await self._probe("working", task)
        return run

    async def _finish(self, run: Run, slot: Slot) -> None:
        """Run the handler and store what it answers or raises."""
        try:
            payload = await self._payload(run)
        except (InvalidPayload, MalformedMessage) as error:
            info = ErrorInfo(code="invalid_payload", message=str(error))
            return await self._conclusion.finish(
                run.delivery, run.task, TaskState.REJECTED, error=info, run=run
            )
        except PartGone as error:
            return await self._conclusion.of_error(run, error)
        result = await self._run(run, payload, slot)
        run.over = True
        if isinstance(result, Exception):
            await self._conclusion.of_error(run, result)
        else:
            try:
                await self._conclusion.of_result(run, result)
            except (
                InvalidPayload
            ) as error:  # it can never be stored, so another attempt would go the same way
                await self._conclusion.of_error(run, WrongResult(str(error)))

    def _refusal(self, task: Envelope, deadline: float, past: Past) -> tuple[TaskState, ErrorInfo] | None:
        """Why a task ends before any work, if it does."""
        if past.canceled:
            return TaskState.CANCELED, CANCELED
        if deadline <= time.time():
            return TaskState.FAILED, deadline_exceeded(task)
        address = f"{task.agent}.{task.skill}"
        if task.skill not in self._agent.skills:
            return TaskState.REJECTED, ErrorInfo(code="unknown_skill", message=self._no_such_skill(task))
        if task.depth > DEEPEST or address in task.ancestors:
            path = " → ".join((*task.ancestors, address))
            return TaskState.REJECTED, ErrorInfo(
                code="loop", message=f"The request goes round in a circle: {path}."
            )
        return None

    def _no_such_skill(self, task: Envelope) -> str:
        known = sorted(self._agent.skills)
        meant = nearest(task.skill, known)
        hint = f" Did you mean {meant}?" if meant else ""
        return f"There is no {task.agent}.{task.skill}: {task.agent} has {', '.join(known) or 'none'}.{hint}"

    async def _payload(self, run: Run) -> Any:
        if run.skill.accepts is None:
            return None
        message = run.task.message
        if has_references(message.parts):
            message = run.request = msgspec.structs.replace(
                message, parts=await self._bus.blobs.whole(message.parts, writer=run.task.sender)
            )
        return run.skill.accepts.read(message.parts, message)

    async def _run(self, run: Run, payload: Any, slot: Slot) -> tuple[Part, ...] | Exception:
        """What the handler answers or raises. When it was stopped, the slot's scope ends this instead."""
        result: tuple[Part, ...] | Exception
        self.runs[run.key] = slot.run = run
        try:
            result = await self._invoke(run, run.skill.arguments(payload, run.context(self._state)))
        except Exception as error:  # the author's code may raise whatever it likes
            result = error
        except BaseException as error:  # sys.exit(), or a cancellation that nobody asked for
            if isinstance(error, KeyboardInterrupt) or _is_canceled():
                raise
            result = RuntimeError(f"the handler ended with {type(error).__name__}: {error}")
        finally:
            if self.runs.get(run.key) is run:
                del self.runs[run.key]
        if run.stopped is not None:  # what it says after it was stopped may be half of an answer
            await anyio.lowlevel.checkpoint()
        slot.run = None
        return result

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


def _is_canceled() -> bool:
    """Whether a scope around here was cancelled, so that a cancellation is due."""
    return anyio.current_effective_deadline() == -math.inf


async def _stream(run: Run, arguments: dict[str, Any]) -> tuple[Part, ...]:
    writer = run.writer = ChunkWriter(run.reporter, run.skill)
    try:
        # Closed here and now, whatever stops it: what the handler holds is free before the task is settled.
        async with aclosing(run.skill.handler(**arguments)) as values:
            async for value in values:
                await writer.write(value)
        answer = writer.answer()
    except InvalidPayload as error:
        raise WrongResult(str(error)) from error
    await writer.flush(last=True)
    run.chunks = writer.count
    return answer


def _in_thread(run: Run, arguments: dict[str, Any]) -> Any:
    try:
        return run.skill.handler(**arguments)
    except (SystemExit, GeneratorExit) as error:  # awaited in the loop, they would end more than the thread
        raise RuntimeError(f"the handler ended with {type(error).__name__}: {error}") from error
    finally:
        if run.over:
            log.warning("a thread went on after its task was stopped; its result is dropped: %s", run)


def _written(skill: Skill, value: object) -> tuple[Part, ...]:
    try:
        return skill.returns.write(value)
    except InvalidPayload as error:
        raise WrongResult(str(error)) from error
