"""Asking which tasks there are: the question to the keeper, and its answer, a page at a time."""

from __future__ import annotations

import base64
from typing import NamedTuple

import msgspec

from xnai.protocol.a2a import TaskState
from xnai.protocol.envelope import encode
from xnai.protocol.errors import InvalidArgument
from xnai.protocol.events import ErrorInfo

MOST_TASKS = 500
USUAL_TASKS = 50


class TaskRow(msgspec.Struct, frozen=True, kw_only=True):
    """A task as a list shows it.

    Attributes:
        id, agent, skill, sender, context, lane: of its envelope. `agent` is the name addressed, be it a role.
        parent: the task whose handler asked for this one.
        state: as its log says. What runs for less than a second is not on record yet, and SUBMITTED.
        sent, updated: ISO 8601 UTC; `updated` is when it came into this state.
        attempt: the highest that the log names; 0 for none.
        error: what its outcome says, or its last failed attempt until the next one begins.
    """

    id: str
    agent: str
    skill: str
    sender: str
    context: str | None
    lane: str
    parent: str | None
    state: TaskState
    sent: str
    updated: str
    attempt: int
    error: ErrorInfo | None


class TaskPage(msgspec.Struct, frozen=True, kw_only=True):
    """Tasks, the newest first. `next` is the cursor of the page behind them; None where they end."""

    tasks: tuple[TaskRow, ...]
    next: str | None


class TaskQuery(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which tasks: those of which all holds that is said here.

    Attributes:
        states: one of them; none means any.
        parent: anywhere below this task, whoever asked for them, if the task is the asker's own.
        since, before: sent at this time or later, and before this time; ISO 8601 UTC.
        limit: of a page, 1 to 500.
        after: the `next` of the page before.
    """

    agent: str | None = None
    states: tuple[TaskState, ...] = ()
    context: str | None = None
    parent: str | None = None
    since: str | None = None
    before: str | None = None
    limit: int = USUAL_TASKS
    after: str | None = None


class Place(NamedTuple):
    """A task's place in the order, newest first. It never changes, so neither does what lies behind it."""

    sent: str
    id: str
    agent: str
    sender: str


def cursor_behind(row: TaskRow) -> str:
    """The cursor of the page that begins behind `row`."""
    place = Place(row.sent, row.id, row.agent, row.sender)
    return base64.urlsafe_b64encode(encode(place)).rstrip(b"=").decode()


def read_cursor(cursor: str) -> Place:
    """Where the page behind `cursor` begins.

    Raises:
        InvalidArgument: it is none.
    """
    try:
        data = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        return msgspec.json.decode(data, type=Place)
    except (ValueError, msgspec.MsgspecError):
        raise InvalidArgument(f"{cursor!r} is no cursor: take the `next` of the page before.") from None


def check_query(query: TaskQuery) -> TaskQuery:
    """`query`, which may be asked.

    Raises:
        InvalidArgument: its limit or its cursor is out of range.
    """
    if not 1 <= query.limit <= MOST_TASKS:
        raise InvalidArgument(f"A page has 1 to {MOST_TASKS} tasks, not {query.limit}.")
    if query.after is not None:
        read_cursor(query.after)
    return query
