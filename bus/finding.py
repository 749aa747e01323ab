"""Finding a task by its id: the queue first, then the log, so that it is always in one of them.

The outcome is stored before the task is acknowledged and leaves the queue.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from xnai.bus.jetstream import JetStream, Stored
from xnai.protocol import subjects
from xnai.protocol.a2a import Artifact, Message, Task, TaskArtifactUpdateEvent, TaskState, TaskStatus
from xnai.protocol.envelope import Envelope, read_envelope
from xnai.protocol.errors import IdConflict, MalformedMessage
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
        self._known: list[str] = []

    async def agents(self) -> list[str]:
        """Every agent that was ever declared, sorted."""
        names = await self._api.stream_names(subjects.TASK_STREAM_PREFIX)
        return sorted(subjects.agent_of_stream(name) for name in names)

    async def find(self, id: str, *, agents: Iterable[str] | None = None) -> Found | None:
        """The task with this id, looked for with `agents` or with all.

        Those that are known are asked first; only then whether there are more.
        """
        if agents is not None:
            return await self._find_with(list(agents), id)
        known = self._known
        if known and (found := await self._find_with(known, id)):
            return found
        self._known = await self.agents()
        return await self._find_with([agent for agent in self._known if agent not in known], id)

    async def _find_with(self, agents: Sequence[str], id: str) -> Found | None:
        queues = [(subjects.task_stream(agent), subjects.queued(agent, self._name, id)) for agent in agents]
        gates = [(subjects.log_stream(agent), subjects.gate(agent, self._name, id)) for agent in agents]
        found = await self._api.last_in_each((*queues, *gates))
        # All are read at once, in no order: a task that ended meanwhile may be missing in both, for a moment.
        if not any(found):
            found = await self._api.last_in_each(gates)
        ended = found[-len(gates) :]
        for place, stored in enumerate(found[: len(queues)] if len(found) > len(gates) else ()):
            if stored is not None:  # nobody else can have sent it, so only that agent's word counts
                outcome = ended[place]
                return self._queued(stored) if outcome is None else self._ended(outcome)
        outcomes = [stored for stored in ended if stored is not None]
        if len(outcomes) > 1:
            raise IdConflict(f"Several agents say how a task {id} has ended.")
        return self._ended(outcomes[0]) if outcomes else None

    def _queued(self, stored: Stored) -> Found:
        task = read_envelope(stored.data, subjects.read_task(stored.subject))
        return Found(
            id=task.id,
            agent=task.agent,
            sender=task.sender,
            instance=task.instance,
            skill=task.skill,
            request=task.message,
            queued=(task, stored),
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

    async def story(self, found: Found | Envelope, *, after: int = 0, served: bool = False) -> list[Event]:
        """The events of a task that stand in its log beyond the sequence `after`, in order.

        `served` says that we serve the agent that was asked, and so may read its log.
        """
        stored = self._api.story(found, after=after, served=served)
        return [event_of(event) async for event in stored if is_known(event.subject)]

    async def timed_story(self, found: Found | Envelope, *, after: int = 0) -> list[tuple[float, Event]]:
        """As `story`, each event with when it was stored, in seconds since the epoch."""
        stored = self._api.story(found, after=after)
        return [(event.time, event_of(event)) async for event in stored if is_known(event.subject)]


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
