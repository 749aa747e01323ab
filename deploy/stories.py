"""Tasks and their events in words."""

from __future__ import annotations

from xnai.protocol.a2a import (
    NO_DATA,
    Artifact,
    Message,
    Part,
    Task,
    TaskArtifactUpdateEvent,
    TaskState,
    TaskStatus,
)
from xnai.protocol.events import Event, error_in

_STATES = {
    TaskState.SUBMITTED: "waits in the queue",
    TaskState.WORKING: "is being worked on",
    TaskState.COMPLETED: "completed",
    TaskState.FAILED: "failed",
    TaskState.CANCELED: "was canceled",
    TaskState.REJECTED: "was rejected",
    TaskState.INPUT_REQUIRED: "waits for input",
    TaskState.AUTH_REQUIRED: "waits for authorization",
}


def state_in_words(task: Task) -> str:
    """Its state, since when, and what is said about it."""
    status = task.status
    since = f" at {status.timestamp}" if status.timestamp and status.state.terminal else ""
    since = f" since {status.timestamp}" if status.timestamp and not status.state.terminal else since
    return f"{_STATES.get(status.state, status.state.value)}{since}{_said(status)}"


def _said(status: TaskStatus) -> str:
    said = error_in_words(status)
    return f": {said}" if said else ""


def error_in_words(status: TaskStatus) -> str:
    """What a status says, and the code of its error."""
    if status.message is None:
        return ""
    error = error_in(status)
    text = " ".join(text_of(part) for part in status.message.parts)
    return f"{text} ({error.code})" if error else text


def text_of(part: Part) -> str:
    """A part as a person reads it; bytes are only counted."""
    if part.text is not None:
        return part.text
    if part.data is not NO_DATA:
        return bytes(part.data).decode(errors="replace")
    return part.url if part.url is not None else f"{len(part.raw or b'')} bytes"


def artifact_lines(artifact: Artifact) -> str:
    """An artifact, with its name if it has one."""
    text = (
        "".join(map(text_of, artifact.parts))
        if _is_text(artifact)
        else ", ".join(map(text_of, artifact.parts))
    )
    return f"{artifact.name or 'answer'}: {text}"


def _is_text(artifact: Artifact) -> bool:
    return all(part.text is not None for part in artifact.parts)


def event_line(event: Event) -> str:
    """One event of a task's story."""
    body = event.body
    if isinstance(body, Task):
        words = state_in_words(body)
    elif isinstance(body, TaskArtifactUpdateEvent):
        words = artifact_lines(body.artifact)
    elif isinstance(body, Message):
        words = " ".join(map(text_of, body.parts))
    else:
        words = f"attempt {event.facts.attempt}{_said(body.status)}"
    return f"{event.sequence:>6}  {event.kind:<8}  {event.writer}  {words}"
