"""What the golden files of the bus's own wire hold: envelopes, each kind of event, an error, subjects."""

from __future__ import annotations

import msgspec
from golden.examples import AT, CONTEXT, TASK
from golden.examples import card as described
from msgspec import Raw

from xnai.protocol import events, subjects
from xnai.protocol.a2a import Artifact, Message, Part, Role, TaskArtifactUpdateEvent, TaskState
from xnai.protocol.envelope import Envelope
from xnai.protocol.events import ErrorInfo, Facts
from xnai.protocol.listing import TaskPage, TaskQuery, TaskRow, cursor_behind
from xnai.protocol.presence import Level, Presence, SkillFacts, with_presence
from xnai.protocol.subjects import EventSubject, TaskSubject

INSTANCE = "3f9a07c2"
SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

_request = Message(
    message_id=TASK,
    context_id=CONTEXT,
    task_id=TASK,
    role=Role.USER,
    parts=(Part(data=Raw(b"21"), media_type="application/json"),),
)
envelope = Envelope(
    v=1,
    id=TASK,
    context=CONTEXT,
    agent="maths",
    skill="double",
    sender="ada",
    instance=INSTANCE,
    lane="urgent",
    sent=AT,
    deadline="2026-11-24T09:30:00.250Z",
    max_attempts=3,
    depth=2,
    ancestors=("report.write", "table.sum"),
    parent="fQ2xUe0nTqK7yZJr1mC8dw",
    traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    message=_request,
)
short = Envelope(
    v=1,
    id=TASK,
    context=CONTEXT,
    agent="maths",
    skill="double",
    sender="ada",
    instance=INSTANCE,
    lane="normal",
    sent=AT,
    deadline="2026-11-24T09:30:00.250Z",
    message=_request,
)

error = ErrorInfo(code="handler_error", message="ValueError: no such table", retryable=True)
facts = Facts(attempt=2, agent="maths", instance=INSTANCE)
_answer = Artifact(artifact_id=f"{TASK}-2", parts=(Part(data=Raw(b"42"), media_type="application/json"),))
_chunks = Artifact(artifact_id=f"{TASK}-2", parts=(Part(text="forty-"), Part(text="two")))


def _said(kind: str, text: str) -> Message:
    return Message(
        message_id=f"{TASK}-{kind}",
        context_id=CONTEXT,
        task_id=TASK,
        role=Role.USER,
        parts=(Part(text=text),),
    )


BODIES: dict[str, tuple[str, events.Body]] = {  # name of the file: kind and body
    "event_working": (
        events.WORKING,
        events.status_update(envelope, TaskState.WORKING, at=AT, facts=facts),
    ),
    "event_status": (
        events.STATUS,
        events.status_update(
            envelope,
            TaskState.WORKING,
            at=AT,
            facts=facts,
            message=events.text_message(f"{TASK}.status.1", "half done", task=envelope),
        ),
    ),
    "event_failed": (
        events.FAILED,
        events.status_update(
            envelope,
            TaskState.WORKING,
            at=AT,
            facts=msgspec.structs.replace(facts, delay=1.5),
            message=events.failure(envelope, error),
        ),
    ),
    "event_returned": (
        events.RETURNED,
        events.status_update(envelope, TaskState.SUBMITTED, at=AT, facts=facts),
    ),
    "event_artifact": (
        events.ARTIFACT,
        TaskArtifactUpdateEvent(
            task_id=TASK,
            context_id=CONTEXT,
            artifact=_chunks,
            append=True,
            metadata=msgspec.structs.replace(facts, index=3).metadata(),
        ),
    ),
    "event_input": (events.INPUT, _said("input", "the second one")),
    "event_cancel": (events.CANCEL, _said("cancel", "no longer needed")),
    "event_outcome_completed": (
        events.OUTCOME,
        events.outcome(envelope, TaskState.COMPLETED, at=AT, facts=facts, artifacts=(_answer,)),
    ),
    "event_outcome_streamed": (
        events.OUTCOME,
        events.outcome(
            envelope,
            TaskState.COMPLETED,
            at=AT,
            facts=msgspec.structs.replace(facts, chunks=2),
            artifacts=(_chunks,),
        ),
    ),
    "event_outcome_whole": (
        events.OUTCOME,
        events.outcome(
            envelope,
            TaskState.COMPLETED,
            at=AT,
            facts=msgspec.structs.replace(facts, chunks=2, whole=True),
            artifacts=(_answer,),
        ),
    ),
    "event_outcome_failed": (
        events.OUTCOME,
        events.outcome(
            envelope,
            TaskState.FAILED,
            at=AT,
            facts=facts,
            error=ErrorInfo(code="exhausted", message="The last of 3 attempts failed: no such table."),
        ),
    ),
}

task_subject = TaskSubject(agent="maths", lane="urgent", sender="ada", skill="double", id=TASK)
event_subject = EventSubject(
    agent="maths", sender="ada", id=TASK, instance=INSTANCE, writer="maths", kind=events.OUTCOME
)

SUBJECTS: dict[str, str] = {  # function of `xnai.protocol.subjects`, and after the space which use of it
    "task": subjects.task(task_subject),
    "tasks": subjects.tasks("maths"),
    "tasks lane": subjects.tasks("maths", lane="urgent"),
    "queued": subjects.queued("maths", "ada", TASK),
    "event": subjects.event(event_subject),
    "log": subjects.log("maths"),
    "log task": subjects.log("maths", "ada", TASK),
    "gate": subjects.gate("maths", "ada", TASK),
    "outcomes": subjects.outcomes("maths"),
    "live_destination": subjects.live_destination("maths"),
    "live_of_instance": subjects.live_of_instance("ada", INSTANCE),
    "live_of_task": subjects.live_of_task("ada", TASK),
    "live_kind": subjects.live_kind("maths", events.CANCEL),
    "stored_subject": subjects.stored_subject(f"xnai.v1.live.maths.ada.{TASK}.{INSTANCE}.maths.outcome"),
    "delta": subjects.delta("maths", "ada", TASK, instance=INSTANCE, writer="maths"),
    "deltas_of_instance": subjects.deltas_of_instance("ada", INSTANCE),
    "deltas_of_task": subjects.deltas_of_task("ada", TASK),
    "dead": subjects.dead("maths", TASK),
    "dead bytes": subjects.dead("maths"),
    "blob": subjects.blob("ada", "maths", SHA256),
    "blob chunk": subjects.blob("ada", "maths", SHA256, 0),
    "task_stream": subjects.task_stream("maths"),
    "log_stream": subjects.log_stream("maths"),
    "agent_of_stream": subjects.agent_of_stream("XNAI_TASK_maths"),
    "card": subjects.card("maths", INSTANCE),
    "card agent": subjects.card("maths"),
    "held_card": subjects.held_card(f"xnai.v1.alive.maths.{INSTANCE}"),
    "control": subjects.control("maths", INSTANCE),
    "reading": subjects.reading("maths", "ada", TASK),
    "declaring": subjects.declaring("maths"),
    "administering": subjects.administering("ada"),
    "joining": subjects.joining("guest"),
    "CONTROL_SUBJECTS": subjects.CONTROL_SUBJECTS,
    "listing": subjects.listing("ada"),
    "listing everybody": subjects.listing(subjects.EVERYBODY),
    "EVERYBODY": subjects.EVERYBODY,
    "CARD_STREAM": subjects.CARD_STREAM,
    "CARD_SUBJECTS": subjects.CARD_SUBJECTS,
    "ALIVE_SUBJECTS": subjects.ALIVE_SUBJECTS,
    "DEAD_STREAM": subjects.DEAD_STREAM,
    "DEAD_SUBJECTS": subjects.DEAD_SUBJECTS,
    "BLOB_STREAM": subjects.BLOB_STREAM,
    "BLOB_SUBJECTS": subjects.BLOB_SUBJECTS,
    "TASK_STREAM_PREFIX": subjects.TASK_STREAM_PREFIX,
}

presence = Presence(
    agent="maths",
    roles=("counter",),
    instance=INSTANCE,
    host="attic",
    pid=4711,
    version="1.0.0",
    started="2026-01-31T12:00:00.000Z",
    concurrency=32,
    running=2,
    done=40,
    failed=1,
    healed=0,
    level=Level.CONSUMING,
    why="maths.rest of task t, attempt 1 goes on though it was stopped 7 s ago.",
    last_error="rest: ValueError: no such table",
    memory_mb=35.2,
    skills={
        "double": SkillFacts(
            input={"type": "integer"}, output={"type": "integer"}, done=40, failed=1, seconds=0.5
        )
    },
)

tasks_query = TaskQuery(
    agent="maths",
    states=(TaskState.FAILED, TaskState.CANCELED),
    context=CONTEXT,
    parent="fQ2xUe0nTqK7yZJr1mC8dw",
    since=AT,
    before="2026-11-24T09:30:00.250Z",
    limit=20,
    after="WyIyMDI2LTAxLTMxVDEyOjAwOjAwLjAwMFoiLCJ4IiwibWF0aHMiLCJhZGEiXQ",
)
task_row = TaskRow(
    id=TASK,
    agent="maths",
    skill="double",
    sender="ada",
    context=CONTEXT,
    lane="urgent",
    parent="fQ2xUe0nTqK7yZJr1mC8dw",
    state=TaskState.FAILED,
    sent=AT,
    updated=AT,
    attempt=3,
    error=error,
)
tasks_page = TaskPage(tasks=(task_row,), next=cursor_behind(task_row))

OBJECTS: dict[str, object] = {
    "tasks_query": tasks_query,
    "tasks_page": tasks_page,
    "envelope": envelope,
    "envelope_short": short,
    "error": {events.ERROR_KEY: error},
    "presence": presence,
    "card": with_presence(described, presence),
    **{name: body for name, (_, body) in BODIES.items()},
}
