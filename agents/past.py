"""What the log says about a task that may have been worked on before."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import msgspec

from xnai.bus.jetstream import JetStream, Stored, TooManySubjects
from xnai.bus.pull import Delivery
from xnai.protocol import subjects
from xnai.protocol.errors import MalformedMessage
from xnai.protocol.events import (
    CANCEL,
    FAILED,
    OUTCOME,
    RETURNED,
    WORKING,
    ErrorInfo,
    error_in,
    facts_of,
    read_body,
)
from xnai.protocol.subjects import TaskSubject

_TASKS_AT_ONCE = 32  # each may have many subjects in its log, and a read ends at 1,024


class Past(msgspec.Struct, frozen=True, kw_only=True):
    """The story of a task so far.

    Attributes:
        ended, canceled: whether its log holds an outcome, or the wish to cancel it.
        attempt: the number that the next attempt has.
        recorded: whether the log names an attempt at all. Without a record the task ran at most once,
            for less than a second.
        error: why the last failed attempt did.
    """

    ended: bool = False
    canceled: bool = False
    attempt: int = 1
    recorded: bool = False
    error: ErrorInfo | None = None


FRESH = Past()
_MADE_UP = Past(canceled=True, attempt=2)  # of a log that its sender has filled: it must not hide others


def read_past(events: Iterable[Stored]) -> Past:
    """The past in the last events of each kind and writer in a task's log."""
    ended = canceled = False
    best = (0, 0, "")  # attempt, sequence, kind: of the latest event of the highest attempt
    error: tuple[int, ErrorInfo] | None = None
    for stored in events:
        kind = subjects.read_event(stored.subject).kind
        if kind == OUTCOME:
            ended = True
        elif kind == CANCEL:
            canceled = True
        elif kind in (WORKING, FAILED, RETURNED):
            body = read_body(kind, stored.data)
            best = max(best, (facts_of(body).attempt, stored.sequence, kind))
            said = error_in(body.status) if kind == FAILED else None  # type: ignore[union-attr]
            if said is not None and (error is None or error[0] < stored.sequence):
                error = (stored.sequence, said)
    highest, _, kind = best
    return Past(
        ended=ended,
        canceled=canceled,
        attempt=highest if kind == RETURNED else max(1, highest) + 1,
        recorded=highest > 0,
        error=error[1] if error else None,
    )


async def look_up(api: JetStream, deliveries: Iterable[Delivery]) -> list[tuple[Delivery, Past]]:
    """The past of several tasks, in few reads.

    Raises:
        Unavailable: the log cannot be read now.
    """
    by_agent: dict[str, list[tuple[TaskSubject, Delivery]]] = defaultdict(list)
    for delivery in deliveries:
        by_agent[delivery.about.agent].append((delivery.about, delivery))
    answers: list[tuple[Delivery, Past]] = []
    for agent, asked in by_agent.items():
        for start in range(0, len(asked), _TASKS_AT_ONCE):
            answers += await _look_up(api, agent, asked[start : start + _TASKS_AT_ONCE])
    return answers


async def _look_up(
    api: JetStream, agent: str, asked: list[tuple[TaskSubject, Delivery]]
) -> list[tuple[Delivery, Past]]:
    logs = [subjects.log(agent, task.sender, task.id) for task, _ in asked]
    events: dict[tuple[str, str], list[Stored]] = defaultdict(list)
    try:
        found = await api.last_of_each(subjects.log_stream(agent), logs)
    except TooManySubjects:
        if len(asked) == 1:
            return [(asked[0][1], _MADE_UP)]
        return [each for one in asked for each in await _look_up(api, agent, [one])]
    for stored in found:
        try:
            about = subjects.read_event(stored.subject)
        except MalformedMessage:  # a sender may store anything about its own tasks
            continue
        events[about.sender, about.id].append(stored)
    return [(delivery, _past(events[task.sender, task.id])) for task, delivery in asked]


def _past(events: list[Stored]) -> Past:
    try:
        return read_past(events)
    except MalformedMessage:  # somebody else wrote it; only the outcome matters then
        return Past(ended=any(stored.subject.endswith(OUTCOME) for stored in events), attempt=2)
