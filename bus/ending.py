"""What an owner may write about its own task: the wish to cancel it, and its outcome when no worker does."""

from __future__ import annotations

import time

import anyio

from xnai.bus.blobs import Blobs
from xnai.bus.finding import Finder, read_outcome
from xnai.bus.publisher import Publisher
from xnai.bus.streams import KEPT_AFTER_THE_END
from xnai.protocol import subjects
from xnai.protocol.a2a import Message, Role, Task, TaskState
from xnai.protocol.envelope import Envelope, encode
from xnai.protocol.errors import GateClosed, TaskNotCancelable, Unavailable
from xnai.protocol.events import CANCEL, OUTCOME, ErrorInfo, Facts, outcome
from xnai.protocol.payload import part_of
from xnai.protocol.subjects import EventSubject
from xnai.protocol.timestamps import format_timestamp

_VISIBLE_WITHIN = 5.0
_LOOK_AGAIN = 0.05

CANCELED = ErrorInfo(code="canceled", message="The task was canceled.")


def deadline_exceeded(task: Envelope) -> ErrorInfo:
    text = f"{task.agent}.{task.skill} was not done by its deadline, {task.deadline}."
    return ErrorInfo(code="deadline_exceeded", message=text, retryable=True)


def event_about(task: Envelope, writer: str, kind: str) -> EventSubject:
    """Where `writer` writes an event of `task`."""
    return EventSubject(task.agent, task.sender, task.id, task.instance, writer, kind)


class Owner:
    """Writes as `name`, the sender of the tasks (or as `system`, the keeper)."""

    def __init__(self, publisher: Publisher, finder: Finder, blobs: Blobs, name: str) -> None:
        self._publisher, self._finder, self._blobs, self._name = publisher, finder, blobs, name

    async def cancel(self, task: Envelope, reason: str) -> None:
        """Ask the worker to stop.

        Raises:
            TaskNotCancelable: the task has ended.
            Unavailable: the wish was not confirmed.
        """
        wish = Message(
            message_id=f"{task.id}-cancel",
            role=Role.USER,
            parts=(part_of(reason),),
            task_id=task.id,
            context_id=task.context,
        )
        try:
            await self._publisher.store(
                subjects.event(event_about(task, self._name, CANCEL)),
                encode(wish),
                id=f"{task.id}.{CANCEL}.1",
                unless=subjects.gate(task.agent, task.sender, task.id),
            )
        except GateClosed:
            raise TaskNotCancelable(f"The task {task.id} has ended and cannot be canceled.") from None

    async def end(self, task: Envelope, state: TaskState, error: ErrorInfo) -> Task:
        """Write the outcome, unless there is one: the one that is stored is returned.

        Raises:
            Unavailable: the broker confirmed nothing.
        """
        now = time.time()
        own = outcome(task, state, at=format_timestamp(now), facts=Facts(), error=error)
        data = await self._blobs.fit(own, reader=task.sender, until=now + KEPT_AFTER_THE_END)
        try:
            await self._publisher.store(
                subjects.event(event_about(task, self._name, OUTCOME)),
                data,
                unless=subjects.gate(task.agent, task.sender, task.id),
            )
        except GateClosed:
            return await self.stored_outcome(task)
        return read_outcome(data)

    async def stored_outcome(self, task: Envelope) -> Task:
        """The outcome that the gate says is there: in a cluster it may take a moment to be seen."""
        with anyio.move_on_after(_VISIBLE_WITHIN):
            while True:
                if stored := await self._finder.outcome(task.agent, task.id, sender=task.sender):
                    return stored
                await anyio.sleep(_LOOK_AGAIN)
        raise Unavailable(f"The outcome of {task.id} exists but cannot be read yet.")
