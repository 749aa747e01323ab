"""Turning what is seen of a run into records: by callers, by followers, and in the log at the end."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from contextlib import aclosing

import msgspec
from history import AnyRecord, Asked, Followed, Heard, Returned, Stored, Yielded

from xnai.bus import Bus, Limits
from xnai.bus.finding import event_of
from xnai.bus.jetstream import Stored as StoredMessage
from xnai.protocol import (
    Event,
    Part,
    Task,
    TaskArtifactUpdateEvent,
    TaskFailed,
    TaskState,
    Unavailable,
    XnaiError,
    subjects,
)
from xnai.protocol.envelope import encode
from xnai.protocol.events import OUTCOME, error_in

CALLER = "caller"
READY = "ready"
TIMEOUT = 60.0
LIMITS = Limits(ack_wait=1.0)
Write = Callable[[AnyRecord], None]


def say(record: AnyRecord) -> None:
    """Print a record as one line, at once and in one piece: whoever prints may be killed at any time."""
    os.write(sys.stdout.fileno(), encode(record) + b"\n")


async def ask(bus: Bus, to: str, payload: object, *, id: str, by: str, write: Write) -> None:
    """Call, and write down what came back."""
    write(Asked(id=id, by=by))
    try:
        answer = await bus.call(to, payload, id=id, timeout=TIMEOUT)
    except XnaiError as error:
        write(failure(id, by, error))
    else:
        write(Returned(id=id, by=by, state=TaskState.COMPLETED, answer=as_json(answer)))


async def read(bus: Bus, to: str, payload: object, *, id: str, by: str, write: Write) -> None:
    """Read a stream of numbers, and write down what was handed out."""
    write(Asked(id=id, by=by))
    try:
        async with aclosing(bus.stream(to, payload, int, id=id, timeout=TIMEOUT)) as chunks:
            async for chunk in chunks:
                write(Yielded(id=id, by=by, value=as_json(chunk)))
    except XnaiError as error:
        write(failure(id, by, error))
    else:
        write(Returned(id=id, by=by, state=TaskState.COMPLETED))


async def follow(bus: Bus, id: str, *, by: str, write: Write) -> None:
    """Subscribe to a task, and write down what is heard until its outcome.

    On a machine that is busy the broker may be too slow to say where it is: then again, from where we were.
    """
    after = 0
    for patience in (True, True, False):
        try:
            async with aclosing(bus.subscribe(id, after=after)) as events:
                async for event in events:
                    write(heard(id, by, event))
                    after = event.sequence
        except Unavailable:
            if not patience:
                raise
        else:
            break
    write(Followed(id=id, by=by))


def failure(id: str, by: str, error: XnaiError) -> Returned:
    """What a caller was told instead of an answer."""
    state = error.task.status.state if isinstance(error, TaskFailed) else error.code
    return Returned(id=id, by=by, state=state, answer=error.code)


def heard(id: str, by: str, event: Event) -> Heard:
    """What `by` heard of the task `id`."""
    return Heard(id=id, by=by, sequence=event.sequence, kind=event.kind, digest=_digest(event))


def _digest(event: Event) -> str:
    return hashlib.sha256(encode(event.body)).hexdigest()[:16]


def as_json(value: object) -> str:
    """An answer, or a chunk of one, as the records have it."""
    return encode(value).decode()


def stored(message: StoredMessage) -> Stored:
    """What stands in a log."""
    event, id = event_of(message), subjects.read_event(message.subject).id
    facts = event.facts
    record = Stored(
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
        return replace(record, state=state, answer=answer, chunks=facts.chunks)
    body = event.body
    if isinstance(body, TaskArtifactUpdateEvent) and body.artifact.artifact_id == f"{id}-{facts.attempt}":
        values = tuple(_value(part) for part in body.artifact.parts)
        return replace(record, index=facts.index, values=values)
    return record


def _answer(outcome: Task) -> str:
    if outcome.status.state is TaskState.COMPLETED:
        return _value(outcome.artifacts[0].parts[0])
    error = error_in(outcome.status)
    return error.code if error else ""


def _value(part: Part) -> str:
    return as_json(part.text) if part.text is not None else bytes(part.data).decode()
