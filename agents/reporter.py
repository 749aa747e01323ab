"""What a worker writes into the log of a task while it works on it."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import anyio.lowlevel

from xnai.agents.stop import Stop
from xnai.bus.bus import Bus
from xnai.bus.ending import event_about
from xnai.bus.streams import KEPT_AFTER_THE_END
from xnai.protocol import subjects
from xnai.protocol.a2a import (
    Artifact,
    Message,
    Part,
    TaskArtifactUpdateEvent,
    TaskState,
    TaskStatusUpdateEvent,
)
from xnai.protocol.envelope import encode
from xnai.protocol.errors import GateClosed, InvalidPayload, Unavailable
from xnai.protocol.events import (
    ARTIFACT,
    FAILED,
    RETURNED,
    STATUS,
    WORKING,
    ErrorInfo,
    Facts,
    failure,
    status_update,
    text_message,
)
from xnai.protocol.payload import part_of
from xnai.protocol.timestamps import format_timestamp

if TYPE_CHECKING:
    from xnai.agents.run import Run


class Reporter:
    """Writes the events of one attempt. All stand behind the gate: nothing is written after the outcome."""

    def __init__(self, bus: Bus, agent: str, run: Run) -> None:
        self._bus, self._agent, self._run = bus, agent, run
        self._numbers: Counter[str] = Counter()
        self._begun = 0
        self.artifacts: list[Artifact] = []

    @property
    def until(self) -> float:
        """Until when large parts of this task's events may be needed, in seconds since the epoch."""
        return self._run.deadline + KEPT_AFTER_THE_END

    def facts(self, *, index: int = 0, delay: float = 0.0, chunks: int = -1) -> Facts:
        return Facts(
            attempt=self._run.attempt,
            agent=self._agent,
            instance=self._bus.instance,
            index=index,
            delay=delay,
            chunks=chunks,
        )

    async def working(self) -> None:
        """This attempt is under way; from now on it counts. Raises GateClosed, Unavailable."""
        self._run.recorded = True
        await self._store(WORKING, self._status(TaskState.WORKING, self.facts()))

    async def failed(self, error: ErrorInfo, delay: float) -> None:
        """This attempt failed, and the next comes in `delay` seconds. Raises GateClosed, Unavailable."""
        message = failure(self._run.task, error)
        await self._store(FAILED, self._status(TaskState.WORKING, self.facts(delay=delay), message))

    async def returned(self) -> None:
        """This attempt is handed back and does not count. Raises GateClosed, Unavailable."""
        await self._store(RETURNED, self._status(TaskState.SUBMITTED, self.facts()))

    async def progress(self, text: str) -> None:
        message = text_message(f"{self._run.task.id}-status", text, task=self._run.task)
        await self._tell(STATUS, self._status(TaskState.WORKING, self.facts(), message))

    async def artifact(self, name: str, value: object) -> None:
        parts = (part_of(value),)
        self._begun += 1
        id = f"{self._run.task.id}-{self._run.attempt}-{self._begun}"
        artifact = Artifact(artifact_id=id, name=name, parts=parts)
        await self._tell(ARTIFACT, self.update(artifact, last=True))
        self.artifacts.append(artifact)  # one that was refused has no place in the outcome either

    async def chunks(self, index: int, parts: tuple[Part, ...], *, last: bool) -> None:
        """Chunks of the stream that is this task's answer, the first of which has the number `index`."""
        artifact = Artifact(artifact_id=self._run.answer_id, parts=parts)
        await self._tell(ARTIFACT, self.update(artifact, index=index, last=last))

    async def delta(self, index: int, part: Part) -> None:
        """The early view of one chunk; one that is too large is left to the stored event."""
        run = self._run
        data = encode(self.update(Artifact(artifact_id=self._run.answer_id, parts=(part,)), index=index))
        if len(data) <= self._bus.blobs.room:
            subject = subjects.delta(
                run.task.agent, run.task.sender, run.task.id, instance=run.task.instance, writer=self._agent
            )
            try:
                await self._bus.transport.client.send(subject, data)
            except (Unavailable, InvalidPayload):  # only a view: the stored event follows
                return

    def update(self, artifact: Artifact, *, index: int = 0, last: bool = False) -> TaskArtifactUpdateEvent:
        return TaskArtifactUpdateEvent(
            task_id=self._run.task.id,
            context_id=self._run.task.context,
            artifact=artifact,
            append=index > 0,
            last_chunk=last,
            metadata=self.facts(index=index).metadata(),
        )

    def _status(
        self, state: TaskState, facts: Facts, message: Message | None = None
    ) -> TaskStatusUpdateEvent:
        return status_update(
            self._run.task, state, at=format_timestamp(time.time()), facts=facts, message=message
        )

    async def _tell(self, kind: str, body: TaskStatusUpdateEvent | TaskArtifactUpdateEvent) -> None:
        """Store an event in the handler's name. Once the task has ended, the handler is stopped instead."""
        if self._run.over:
            return
        try:
            await self._store(kind, body)
        except GateClosed:
            self._run.stop(Stop.ENDED_ELSEWHERE)
            await anyio.lowlevel.checkpoint()

    async def _store(self, kind: str, body: TaskStatusUpdateEvent | TaskArtifactUpdateEvent) -> None:
        task, attempt = self._run.task, self._run.attempt
        self._numbers[kind] += 1
        id = f"{task.id}.{self._bus.instance}.{attempt}.{kind}.{self._numbers[kind]}"
        data = await self._bus.blobs.fit(body, reader=task.sender, until=self.until)
        await self._bus.publisher.store(
            subjects.event(event_about(task, self._agent, kind)),
            data,
            id=id,
            unless=subjects.gate(task.agent, task.sender, task.id),
        )
