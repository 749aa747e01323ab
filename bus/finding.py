"""Finding a task by its id: the queue first, then the log, so that it is always in one of them.

The outcome is stored before the task is acknowledged and leaves the queue.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from xnai.bus.jetstream import JetStream, Stored
from xnai.bus.transport import NoResponders
from xnai.protocol import subjects
from xnai.protocol.a2a import Artifact, Message, Task, TaskArtifactUpdateEvent, TaskState, TaskStatus
from xnai.protocol.envelope import Envelope, read_envelope
from xnai.protocol.errors import MalformedMessage
from xnai.protocol.events import FAILED, KINDS, OUTCOME, RETURNED, STATUS, WORKING, Event, facts_of, read_body
from xnai.protocol.timestamps import format_timestamp


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A task that exists.

    Attributes:
        id, agent, sender, instance: the tokens under which its events stand.
        skill: what was asked; empty when a foreign writer ended it without a word.
        request: the message that asked for it.
        queued: the envelope and its place in the queue, while it is there.
        outcome: how it ended, if it did.
    """

    id: str
    agent: str
    sender: str
    instance: str
    skill: str
    request: Message | None
    queued: tuple[Envelope, Stored] | None = None
    outcome: Task | None = None


class Finder:
    """Finds the tasks that `name` sent."""

    def __init__(self, api: JetStream, name: str) -> None:
        self._api, self._name = api, name

    async def agents(self) -> list[str]:
        """Every agent that was ever declared, sorted."""
        names = await self._api.stream_names(subjects.TASK_STREAM_PREFIX)
        return sorted(subjects.agent_of_stream(name) for name in names)

    async def find(self, id: str, *, agents: Iterable[str] | None = None) -> Found | None:
        """The task with this id, looked for with `agents` or with all."""
        for agent in agents if agents is not None else await self.agents():
            if found := await self._find_with(agent, id):
                return found
        return None

    async def _find_with(self, agent: str, id: str) -> Found | None:
        try:
            queued = await self._api.last(subjects.task_stream(agent), subjects.queued(agent, self._name, id))
            gate = subjects.gate(agent, self._name, id)
            ended = await self._api.last(subjects.log_stream(agent), gate)
        except NoResponders:  # its streams are gone or not yet made
            return None
        if ended is not None:
            return self._ended(ended)
        if queued is None:
            return None
        task = read_envelope(queued.data, subjects.read_task(queued.subject))
        return Found(
            id=id,
            agent=agent,
            sender=task.sender,
            instance=task.instance,
            skill=task.skill,
            request=task.message,
            queued=(task, queued),
        )

    def _ended(self, stored: Stored) -> Found:
        subject = subjects.read_event(stored.subject)
        outcome = read_outcome(stored.data)
        return Found(
            id=subject.id,
            agent=subject.agent,
            sender=subject.sender,
            instance=subject.instance,
            skill=facts_of(outcome).skill,
            request=outcome.history[0] if outcome.history else None,
            outcome=outcome,
        )

    async def outcome(self, agent: str, id: str, *, sender: str) -> Task | None:
        """How a task ended, if it did."""
        stored = await self._api.last(subjects.log_stream(agent), subjects.gate(agent, sender, id))
        return None if stored is None else read_outcome(stored.data)

    async def ended_by(self, found: Found, sequence: int) -> bool:
        """Whether its outcome stands in the log at `sequence` or before."""
        gate = subjects.gate(found.agent, found.sender, found.id)
        stored = await self._api.last(subjects.log_stream(found.agent), gate)
        return stored is not None and stored.sequence <= sequence

    async def story(self, found: Found | Envelope, *, after: int = 0) -> list[Event]:
        """The events of a task that stand in its log beyond the sequence `after`, in order."""
        pattern = subjects.log(found.agent, found.sender, found.id)
        stream = subjects.log_stream(found.agent)
        return [
            event_of(stored)
            async for stored in self._api.scan(stream, pattern, after=after)
            if is_known(stored.subject)
        ]


def is_known(subject: str) -> bool:
    """Whether this version reads the kind of event that stands there; later ones may write more kinds."""
    return subject.rpartition(".")[2] in KINDS


def event_of(stored: Stored) -> Event:
    """A stored event, read."""
    subject = subjects.read_event(stored.subject)
    body = read_body(subject.kind, stored.data)
    return Event(sequence=stored.sequence, kind=subject.kind, writer=subject.writer, body=body)


def read_outcome(data: bytes) -> Task:
    """The Task in the bytes of an outcome.

    Raises:
        MalformedMessage: there is none.
    """
    body = read_body(OUTCOME, data)
    if not isinstance(body, Task):
        raise MalformedMessage("An outcome holds no Task.")
    return body


def as_task(found: Found, events: list[Event]) -> Task:
    """Where a task stands that has not ended: an A2A Task, put together from its events."""
    status = TaskStatus(
        state=TaskState.SUBMITTED,
        timestamp=format_timestamp(found.queued[1].time) if found.queued else None,
    )
    for event in events:
        if event.kind in (WORKING, STATUS, FAILED, RETURNED):
            status = event.body.status  # type: ignore[union-attr]  # the kind says which body
    return Task(
        id=found.id,
        context_id=found.queued[0].context if found.queued else None,
        status=status,
        artifacts=tuple(_artifacts(events)),
        history=(found.request,) if found.request else (),
    )


def _artifacts(events: list[Event]) -> list[Artifact]:
    """Artifacts in the order of their first chunk, each chunk's parts behind those before it."""
    whole: dict[str, Artifact] = {}
    for event in events:
        if isinstance(event.body, TaskArtifactUpdateEvent):
            new = event.body.artifact
            old = whole.get(new.artifact_id) if event.body.append else None
            parts = (*old.parts, *new.parts) if old else new.parts
            whole[new.artifact_id] = msgspec.structs.replace(new, parts=parts)
    return list(whole.values())
