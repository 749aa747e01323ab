"""The story of a task, rung by rung, and the one line that says on which it stands and why."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import msgspec

from xnai.bus import Bus
from xnai.bus.finding import Found, as_task
from xnai.bus.pull import Demand, demand
from xnai.bus.transport import NoResponders
from xnai.deploy.stories import artifact_lines, error_in_words, text_of
from xnai.deploy.units import span
from xnai.protocol.a2a import Message, Task, TaskArtifactUpdateEvent
from xnai.protocol.errors import Unavailable
from xnai.protocol.events import (
    ARTIFACT,
    CANCEL,
    FAILED,
    INPUT,
    OUTCOME,
    RETURNED,
    STATUS,
    WORKING,
    Event,
    facts_of,
)
from xnai.protocol.listing import MOST_TASKS, TaskRow
from xnai.protocol.presence import Level, Presence
from xnai.protocol.timestamps import parse_timestamp
from xnai.registry import read_instances

_RUNGS = {
    WORKING: "started",
    STATUS: "progress",
    FAILED: "failed",
    RETURNED: "handed back",
    ARTIFACT: "artifact",
    INPUT: "input",
    CANCEL: "cancel asked",
}
_REPEATED = (STATUS, ARTIFACT)  # told once for all that follow each other
Timed = tuple[float, Event]


class Rung(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a story: when it was stored, what happened, in which attempt (0: in none), by whom."""

    at: float
    what: str
    attempt: int = 0
    who: str = ""
    words: str = ""


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a task.

    Attributes:
        events: of its log, each with its time in seconds since the epoch.
        sent: when it was stored; None where an outcome of a foreign writer does not say so.
        demand: who takes from its queue; None once it has ended.
        workers: the instances alive that take tasks under the name addressed.
        below: its sub-tasks and theirs, the oldest first.
        unknown: why they are not known, if they are not.
    """

    found: Found
    events: list[Timed]
    sent: float | None
    demand: Demand | None
    workers: list[Presence]
    below: list[TaskRow]
    unknown: str = ""

    @property
    def task(self) -> Task:
        """The task as A2A knows it."""
        return self.found.outcome or as_task(self.found, [event for _, event in self.events])


async def read_story(bus: Bus, found: Found) -> Story:
    """Everything about a task that the broker and the keeper know. Raises Unavailable."""
    events = await _events(bus, found)
    if events and isinstance(outcome := events[-1][1].body, Task):  # it may have ended since it was found
        found = msgspec.structs.replace(found, outcome=outcome)
    needs = None
    workers: list[Presence] = []
    if found.outcome is None and found.queued is not None:
        needs = await demand(bus.api, found.agent, found.queued[0].lane)
        alive = (instance.presence for instance in await read_instances(bus))
        workers = [presence for presence in alive if found.agent in presence.addresses]
    below, unknown = await _below(bus, found.id)
    return Story(
        found=found,
        events=events,
        sent=_sent(found),
        demand=needs,
        workers=workers,
        below=below,
        unknown=unknown,
    )


async def _events(bus: Bus, found: Found) -> list[Timed]:
    try:
        return await bus.finder.timed_story(found)
    except NoResponders:  # its log is gone, and the outcome was read a moment ago
        return []


async def _below(bus: Bus, id: str) -> tuple[list[TaskRow], str]:
    try:
        page = await bus.tasks(parent=id, limit=MOST_TASKS)
    except Unavailable as error:
        return [], str(error)
    return list(reversed(page.tasks)), ""


def _sent(found: Found) -> float | None:
    if found.queued is not None:
        return found.queued[1].time
    said = facts_of(found.outcome).sent if found.outcome else ""
    return parse_timestamp(said) if said else None


# The rungs


def rungs(story: Story) -> list[Rung]:
    """What happened, in order."""
    rows = [_stored(story)] if story.sent is not None else []
    repeated = 0
    events = story.events
    for place, (at, event) in enumerate(events):
        following = events[place + 1][1] if place + 1 < len(events) else None
        repeated += 1
        if following is None or event.kind not in _REPEATED or not _same(event, following):
            rows.append(_rung(at, event, repeated))
            repeated = 0
    return rows


def _same(one: Event, other: Event) -> bool:
    return (one.kind, one.writer, one.facts.attempt) == (other.kind, other.writer, other.facts.attempt)


def _stored(story: Story) -> Rung:
    found = story.found
    task = found.queued[0] if found.queued else None
    facts = facts_of(found.outcome) if found.outcome else None
    lane = task.lane if task else facts.lane if facts else ""
    parent = task.parent if task else facts.parent if facts else None
    words = [f"in the lane {lane}"] if lane else []
    words += [f"for the task {parent}"] if parent else []
    words += [f"its deadline is {task.deadline}"] if task and not found.outcome else []
    return Rung(at=story.sent or 0.0, what="stored", who=found.sender, words=", ".join(words))


def _rung(at: float, event: Event, repeated: int) -> Rung:
    facts = event.facts
    who = f"{event.writer} {facts.instance}".strip()
    times = f" ({repeated} of these)" if repeated > 1 else ""
    what = _RUNGS.get(event.kind, event.kind)
    if isinstance(event.body, Task):
        what = event.body.status.state.removeprefix("TASK_STATE_").lower()
    return Rung(at=at, what=what, attempt=facts.attempt, who=who, words=_words(event) + times)


def _words(event: Event) -> str:
    body = event.body
    if isinstance(body, Message):
        return " ".join(map(text_of, body.parts))
    if isinstance(body, TaskArtifactUpdateEvent):
        return artifact_lines(body.artifact)
    said = error_in_words(body.status)
    if event.kind == FAILED and event.facts.delay:
        said += f"; attempt {event.facts.attempt + 1} after {span(event.facts.delay)}"
    return said


# Where it stands


def standing(story: Story, now: float | None = None) -> str:
    """On which rung a task stands, and why, in one line."""
    now = time.time() if now is None else now
    if story.found.outcome is not None:
        return _ended(story, story.found.outcome)
    asked = [at for at, event in story.events if event.kind == CANCEL]
    if asked:
        return f"is being canceled since {span(now - asked[-1])}"
    told = [each for each in story.events if each[1].kind in (WORKING, STATUS, FAILED, RETURNED, ARTIFACT)]
    if not told:
        return _without_record(story, now)
    at, last = told[-1]
    attempt = last.facts.attempt
    if last.kind == RETURNED:
        return f"waits in the queue: attempt {attempt} was handed back; {_takers(story)}"
    if last.kind == FAILED:
        left = at + last.facts.delay - now
        if left > 0:
            return f"waits {span(left)} before attempt {attempt + 1}"
        return f"waits in the queue: attempt {attempt + 1} is due since {span(-left)}; {_takers(story)}"
    return _running(story, now, told)


def _ended(story: Story, outcome: Task) -> str:
    status = outcome.status
    ends = [at for at, event in story.events if event.kind == OUTCOME]
    after = f" after {span(ends[-1] - story.sent)}" if ends and story.sent is not None else ""
    said = error_in_words(status)
    return f"ended: {status.state}{after}{f', {said}' if said else ''}"


def _without_record(story: Story, now: float) -> str:
    queued, needs = story.found.queued, story.demand
    assert queued is not None  # it has no outcome
    assert needs is not None
    since = span(now - queued[1].time)
    if needs.handed_out < queued[1].sequence:
        return f"waits in the queue of {story.found.agent} since {since}: {_takers(story)}"
    if _takes(story):
        return f"is leased to a worker of {story.found.agent}, and no attempt is on record yet"
    return (
        f"was leased, and its worker is gone: another one gets it once the ack wait is over; {_takers(story)}"
    )


def _running(story: Story, now: float, told: Sequence[Timed]) -> str:
    last = told[-1][1]
    facts = last.facts
    began = min(at for at, event in told if event.facts.attempt == facts.attempt)
    who = f"{last.writer}, instance {facts.instance}"
    line = f"runs since {span(now - began)} in attempt {facts.attempt} ({who})"
    if not any(worker.instance == facts.instance for worker in story.workers):
        line += ", which holds no agent card now: another one gets it once the ack wait is over"
    if still := [row for row in story.below if not row.state.terminal]:
        line += f", with {len(still)} open sub-task{'s' if len(still) > 1 else ''}"
    return line


def _takes(story: Story) -> bool:
    return bool(story.workers or (story.demand and story.demand.pulls))


def _takers(story: Story) -> str:
    """Who would take it, and what stands before it."""
    agent, needs = story.found.agent, story.demand
    consuming = [worker for worker in story.workers if worker.level.reaches(Level.CONSUMING)]
    if not _takes(story):
        return f"nobody takes tasks of {agent} now"
    number = needs.waiting if needs else 0
    waiting = f"{number} task{'' if number == 1 else 's'} of its lane wait{'s' if number == 1 else ''}"
    if not consuming:
        return f"{agent} runs, but takes no tasks now; {waiting}" if story.workers else waiting
    slots, busy = sum(each.concurrency for each in consuming), sum(each.running for each in consuming)
    return f"of {slots} slots of {agent} {busy} are taken, {waiting}"


# What stands below it


def below_in_order(story: Story) -> Iterator[tuple[int, TaskRow]]:
    """Its sub-tasks, each behind the one that asked for it, with how deep it stands."""
    children: dict[str | None, list[TaskRow]] = {}
    for row in story.below:
        children.setdefault(row.parent, []).append(row)
    waiting = [(1, row) for row in reversed(children.pop(story.found.id, []))]
    while waiting:
        depth, row = waiting.pop()
        yield depth, row
        waiting += [(depth + 1, child) for child in reversed(children.pop(row.id, []))]
