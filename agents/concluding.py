"""How an attempt ends: the outcome is stored, or a record and the time of the next attempt.

Outcome first, acknowledgement second: a crash in between repeats work and changes nothing.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

import anyio
import msgspec

from xnai.agents.run import Run
from xnai.agents.stop import Stop
from xnai.agents.tally import Tally
from xnai.bus.bus import Bus
from xnai.bus.ending import CANCELED, deadline_exceeded, event_about
from xnai.bus.pull import Delivery
from xnai.bus.streams import DAY, KEPT_AFTER_THE_END
from xnai.protocol import subjects
from xnai.protocol.a2a import Artifact, Message, Part, Role, TaskState, TaskStatusUpdateEvent
from xnai.protocol.envelope import Envelope, as_dict, encode
from xnai.protocol.errors import InvalidPayload, MalformedMessage, Reject, TaskFailed, XnaiError
from xnai.protocol.events import (
    ERROR_KEY,
    EXTENSION,
    FAILED,
    OUTCOME,
    ErrorInfo,
    Facts,
    error_in,
    facts_of,
    outcome,
)
from xnai.protocol.payload import BYTES, JSON
from xnai.protocol.timestamps import format_timestamp

log = logging.getLogger(__name__)
_LONGEST_ERROR = 2_000  # characters of an author's error that are kept
_SAY_GOODBYE = 2.0  # seconds for the record of a hand-back
Probe = Callable[[str, Envelope], Awaitable[None]]
"""Called at each named point of a task's journey, for tests that crash there."""


class WrongResult(XnaiError):
    """A handler answered something else than it declares."""

    code = "invalid_result"


class Conclusion:
    """Ends attempts in the name of one agent's process."""

    def __init__(self, bus: Bus, agent: str, probe: Probe | None) -> None:
        self._bus, self._agent, self._probe = bus, agent, probe
        self.tally = Tally()

    async def of_result(self, run: Run, parts: tuple[Part, ...]) -> None:
        """The handler has answered."""
        artifacts = (Artifact(artifact_id=run.answer_id, parts=parts), *run.artifacts)
        await self.finish(run.delivery, run.task, TaskState.COMPLETED, run=run, artifacts=artifacts)

    async def of_error(self, run: Run, error: Exception) -> None:
        """The handler has raised."""
        if isinstance(error, Reject):
            again = error.retry_after
            info = ErrorInfo(
                code=error.code,
                message=_shortened(str(error)),
                retryable=again is not None,
                retry_after=msgspec.UNSET if again is None else again,
            )
            return await self.finish(run.delivery, run.task, TaskState.REJECTED, error=info, run=run)
        if isinstance(error, WrongResult):
            said = f"{run.task.skill} answered something else. {error}"
            info = ErrorInfo(code=error.code, message=_shortened(said))
            return await self.finish(run.delivery, run.task, TaskState.FAILED, error=info, run=run)
        log.error("an attempt failed: %s", run, exc_info=error)
        text = str(error) if isinstance(error, XnaiError) else f"{type(error).__name__}: {error}"
        text = _shortened(text)
        self.tally.last_error = f"{run.task.skill}: {text}"
        info = ErrorInfo(code="handler_error", message=text, retryable=True)
        if isinstance(error, TaskFailed) and not error.retryable:
            info = msgspec.structs.replace(info, retryable=False)
            return await self.finish(run.delivery, run.task, TaskState.FAILED, error=info, run=run)
        await self._fail(run, info)

    async def of_stop(self, run: Run) -> None:
        """The handler was stopped."""
        delivery, task = run.delivery, run.task
        if run.stopped is Stop.CANCELED:
            await self.finish(delivery, task, TaskState.CANCELED, error=CANCELED, run=run)
        elif run.stopped is Stop.DEADLINE:
            await self.finish(delivery, task, TaskState.FAILED, error=deadline_exceeded(task), run=run)
        elif run.stopped is Stop.ENDED_ELSEWHERE:
            delivery.ack()
        elif run.stopped is Stop.CAP:
            text = f"The handler ran longer than its cap of {run.skill.cap:g} s."
            await self._fail(run, ErrorInfo(code="handler_error", message=text, retryable=True))
        else:
            await self._hand_back(run)

    async def _hand_back(self, run: Run) -> None:
        """Whoever gets the task next starts at once, with the same attempt."""
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(_SAY_GOODBYE):
                await run.reporter.returned()
            run.delivery.give_back()

    async def _fail(self, run: Run, error: ErrorInfo) -> None:
        """An attempt failed: record it, and try again later or give up."""
        limit = run.task.max_attempts or run.skill.max_attempts
        last = run.attempt >= limit
        delay = 0.0 if last else random.uniform(0.0, run.skill.backoff.ceiling(run.attempt))
        await run.reporter.failed(error, delay)
        if not last:
            run.delivery.give_back(delay)
            return
        await self.exhaust(run.delivery, run.task, attempts=run.attempt, error=error, run=run)

    async def exhaust(
        self,
        delivery: Delivery,
        task: Envelope,
        *,
        attempts: int,
        error: ErrorInfo | None = None,
        run: Run | None = None,
    ) -> None:
        """No attempt is left: keep a dead letter, and end the task as FAILED."""
        reason = error.message if error else "the worker died each time."
        info = ErrorInfo(code="exhausted", message=f"Gave up after {attempts} attempts. The last: {reason}")
        await self._bury(task, info)
        await self.finish(delivery, task, TaskState.FAILED, error=info, run=run)

    async def finish(
        self,
        delivery: Delivery,
        task: Envelope,
        state: TaskState,
        *,
        error: ErrorInfo | None = None,
        run: Run | None = None,
        artifacts: tuple[Artifact, ...] = (),
    ) -> None:
        """Store the outcome, then acknowledge.

        Raises:
            GateClosed: another outcome is stored.
            Busy, Unavailable: this one is not stored, as far as is known.
        """
        now = time.time()
        facts = Facts(
            agent=self._agent,
            instance=self._bus.instance,
            attempt=run.attempt if run else 0,
            chunks=run.chunks if run else -1,
            whole=run is not None and run.chunks >= 0 and run.skill.whole is not None,
        )
        body = outcome(task, state, at=format_timestamp(now), facts=facts, artifacts=artifacts, error=error)
        data = encode(body)
        if len(data) > self._bus.blobs.room:
            data = await self._bus.blobs.fit(body, reader=task.sender, until=now + KEPT_AFTER_THE_END + DAY)
        await self._bus.publisher.store(
            subjects.event(event_about(task, self._agent, OUTCOME)),
            data,
            unless=subjects.gate(task.agent, task.sender, task.id),
        )
        spent = time.monotonic() - run.began if run else 0.0
        self.tally.count(task.skill, done=state is TaskState.COMPLETED, seconds=spent)
        if self._probe:
            await self._probe("outcome published", task)
        delivery.ack()

    async def _bury(self, task: Envelope, reason: ErrorInfo) -> None:
        """Keep a dead letter: the envelope, the reason, and what each attempt said."""
        try:
            story = await self._bus.finder.story(task, served=True)
        except MalformedMessage:  # its sender has made a mess of it
            story = []
        attempts = [
            {"at": body.status.timestamp, "facts": as_dict(facts_of(body)), "error": error_in(body.status)}
            for body in (event.body for event in story if event.kind == FAILED)
            if isinstance(body, TaskStatusUpdateEvent)
        ]
        part = Part(data=msgspec.Raw(msgspec.json.encode(task)), media_type=JSON)
        await self._keep(task.agent, task.id, part, reason, attempts=attempts)

    async def bury_bytes(self, delivery: Delivery, error: MalformedMessage) -> None:
        """Keep bytes that are no message, and acknowledge them."""
        tokens = delivery.subject.split(".")
        reason = ErrorInfo(code=error.code, message=str(error))
        log.warning("a message that is none is kept as a dead letter", extra={"subject": delivery.subject})
        await self._keep(tokens[3], "-", Part(raw=delivery.data, media_type=BYTES), reason, attempts=[])
        delivery.ack()

    async def _keep(
        self, agent: str, id: str, part: Part, reason: ErrorInfo, *, attempts: Sequence[Mapping[str, object]]
    ) -> None:
        now = time.time()
        letter = Message(
            message_id=f"{id}-dead",
            role=Role.AGENT,
            parts=(part,),
            metadata={ERROR_KEY: reason, EXTENSION: {"at": format_timestamp(now), "attempts": attempts}},
        )
        try:
            data = await self._bus.blobs.fit(letter, reader=agent, until=now + 30 * DAY)
        except InvalidPayload as error:  # cannot be: it came over the same broker
            log.error("a dead letter cannot be kept: %s", error)
            return
        await self._bus.publisher.store(subjects.dead(agent, id), data)


def _shortened(text: str) -> str:
    """What an author wrote, no longer than is kept, without what is no text."""
    short = text if len(text) <= _LONGEST_ERROR else f"{text[:_LONGEST_ERROR]}…"
    return short.encode("utf-8", "replace").decode()
