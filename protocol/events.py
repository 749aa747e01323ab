"""Events: the facts about a task that its log keeps, one kind a body."""

from __future__ import annotations

from typing import Any

import msgspec

from xnai.protocol.a2a import (
    Artifact,
    Message,
    Part,
    Role,
    Task,
    TaskArtifactUpdateEvent,
    TaskState,
    TaskStatus,
    TaskStatusUpdateEvent,
)
from xnai.protocol.envelope import Envelope, decode
from xnai.protocol.errors import (
    DeadlineExceeded,
    MalformedMessage,
    TaskCanceled,
    TaskFailed,
    TaskRejected,
)

EXTENSION = "urn:xnai:agent-bus:v1"
ERROR_KEY = f"{EXTENSION}/error"
BLOB_KEY = f"{EXTENSION}/blob"

WORKING, STATUS, FAILED, RETURNED = "working", "status", "failed", "returned"
ARTIFACT, INPUT, CANCEL, OUTCOME = "artifact", "input", "cancel", "outcome"

Body = TaskStatusUpdateEvent | TaskArtifactUpdateEvent | Message | Task
_status = msgspec.json.Decoder(TaskStatusUpdateEvent)
_artifact = msgspec.json.Decoder(TaskArtifactUpdateEvent)
_message = msgspec.json.Decoder(Message)
_task = msgspec.json.Decoder(Task)
_BODIES: dict[str, msgspec.json.Decoder[Any]] = {
    **dict.fromkeys((WORKING, STATUS, FAILED, RETURNED), _status),
    ARTIFACT: _artifact,
    INPUT: _message,
    CANCEL: _message,
    OUTCOME: _task,
}
KINDS = frozenset(_BODIES)
"""The kinds that this version reads. Later ones may write more: a reader skips them."""


class ErrorInfo(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Why something failed: a stable code, one sentence, whether trying again may help, and after what time.

    `retry_after` is in seconds.
    """

    code: str
    message: str
    retryable: bool = False
    retry_after: float | msgspec.UnsetType = msgspec.UNSET


class Facts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What the bus keeps in an event's metadata, under the extension's key.

    Attributes:
        attempt: the number of the attempt that wrote the event; 0 where none did.
        agent, instance: who wrote it, and which of its processes.
        sender, lane, skill, sent, parent: of the task, in its outcome.
        index: number of the first chunk in an artifact event, counted from 0 per attempt.
        delay: seconds until the next attempt, in `failed`.
        chunks: how many chunks a stream had, in its outcome; -1 where nothing was streamed.
        whole: the answer in that outcome is a value of its own, and not the chunks joined.
    """

    attempt: int = 0
    agent: str = ""
    instance: str = ""
    sender: str = ""
    lane: str = ""
    skill: str = ""
    sent: str = ""
    parent: str = ""
    index: int = 0
    delay: float = 0.0
    chunks: int = -1
    whole: bool = False

    def metadata(self) -> dict[str, Any]:
        return {EXTENSION: self}


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One stored event of a task.

    Attributes:
        sequence: its place in the log of the agent: the cursor for `subscribe(after=)`.
        kind: working, status, failed, returned, artifact, step, input, cancel or outcome.
        writer: who wrote it.
        body: the A2A object.
    """

    sequence: int
    kind: str
    writer: str
    body: Body

    @property
    def facts(self) -> Facts:
        """The bus's own facts; empty ones where there are none."""
        return facts_of(self.body)


def read_body(kind: str, data: bytes) -> Body:
    """The body of an event.

    Raises:
        MalformedMessage: it is none of that kind.
    """
    decoder = _BODIES.get(kind)
    if decoder is None:
        raise MalformedMessage(f"{kind!r} is no kind of event that is known here.")
    body: Body = decode(decoder, data)
    return body


def facts_of(body: Body) -> Facts:
    """What the bus keeps in the metadata of `body`; empty facts where there are none."""
    found = (body.metadata or {}).get(EXTENSION)
    if found is None or isinstance(found, Facts):
        return found or Facts()
    try:
        return msgspec.convert(found, Facts)
    except msgspec.ValidationError:  # a foreign writer's metadata proves nothing
        return Facts()


def text_message(
    id: str, text: str, *, task: Envelope | None = None, error: ErrorInfo | None = None
) -> Message:
    """A message of the agent that says `text`, and carries the error where there is one."""
    return Message(
        message_id=id,
        role=Role.AGENT,
        parts=(Part(text=text),),
        task_id=task.id if task else None,
        context_id=task.context if task else None,
        metadata={ERROR_KEY: error} if error else None,
    )


def status_update(
    task: Envelope,
    state: TaskState,
    *,
    at: str,
    facts: Facts,
    message: Message | None = None,
) -> TaskStatusUpdateEvent:
    """The body of `working`, `status`, `failed` and `returned`."""
    return TaskStatusUpdateEvent(
        task_id=task.id,
        context_id=task.context,
        status=TaskStatus(state=state, timestamp=at, message=message),
        metadata=facts.metadata(),
    )


def failure(task: Envelope, error: ErrorInfo) -> Message:
    """What a status says about an error."""
    return text_message(f"{task.id}-error", error.message, task=task, error=error)


def outcome(
    task: Envelope,
    state: TaskState,
    *,
    at: str,
    facts: Facts,
    artifacts: tuple[Artifact, ...] = (),
    error: ErrorInfo | None = None,
) -> Task:
    """The one terminal event of a task: an A2A Task with the request as its history.

    To `facts`, which are its writer's, come those of the task, whose envelope leaves the queue with it.
    """
    facts = msgspec.structs.replace(
        facts,
        sender=task.sender,
        lane=task.lane,
        skill=task.skill,
        sent=task.sent,
        parent=task.parent or "",
    )
    return Task(
        id=task.id,
        context_id=task.context,
        status=TaskStatus(state=state, timestamp=at, message=failure(task, error) if error else None),
        artifacts=artifacts,
        history=(task.message,),
        metadata=facts.metadata(),
    )


def error_in(status: TaskStatus) -> ErrorInfo | None:
    """The error that a status names, if it names one."""
    found = (status.message.metadata or {}).get(ERROR_KEY) if status.message else None
    if found is None or isinstance(found, ErrorInfo):
        return found
    try:
        return msgspec.convert(found, ErrorInfo)
    except msgspec.ValidationError:  # written by somebody else
        return None


_CLASSES: dict[TaskState, type[TaskFailed]] = {
    TaskState.CANCELED: TaskCanceled,
    TaskState.REJECTED: TaskRejected,
}


def as_exception(task: Task) -> TaskFailed:
    """The error to raise for an outcome that is not completed."""
    state = task.status.state
    said = error_in(task.status)
    text = "".join(part.text or "" for part in task.status.message.parts) if task.status.message else ""
    words = state.value.removeprefix("TASK_STATE_").lower()
    error = said or ErrorInfo(code="failed", message=text or f"The task {task.id} ended as {words}.")
    kind = DeadlineExceeded if error.code == "deadline_exceeded" else _CLASSES.get(state, TaskFailed)
    return kind(
        task,
        code=error.code,
        message=error.message,
        retryable=error.retryable,
        retry_after=None if error.retry_after is msgspec.UNSET else error.retry_after,
    )
