"""Asking the keeper which tasks there are: `bus.tasks(…)` a page, `bus.tasks.all(…)` every one."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable
from typing import TypedDict, Unpack

import msgspec

from xnai.bus.asking import ask_keeper
from xnai.bus.transport import Transport
from xnai.protocol import subjects
from xnai.protocol.a2a import TaskState
from xnai.protocol.envelope import decode
from xnai.protocol.errors import InvalidArgument
from xnai.protocol.listing import (
    MOST_TASKS,
    USUAL_TASKS,
    TaskPage,
    TaskQuery,
    TaskRow,
    check_query,
)
from xnai.protocol.timestamps import format_timestamp

_TIMEOUT = 60.0  # seconds: the first question after a long time reads whole logs
_read_page = msgspec.json.Decoder(TaskPage)


class Filters(TypedDict, total=False):
    """Which tasks; what is left out does not matter.

    Attributes:
        agent: the name addressed.
        state: one state, or several of which it is one.
        context: the conversation.
        parent: a task of ours: all its sub-tasks, and theirs.
        since, older: sent in the last so many seconds, or longer ago than so many.
        everybody: those of all senders; for people who own the stack.
    """

    agent: str | None
    state: TaskState | Iterable[TaskState] | None
    context: str | None
    parent: str | None
    since: float | None
    older: float | None
    everybody: bool


class TaskList:
    """The tasks that `name` sent, as an index says that the keeper holds."""

    def __init__(self, transport: Transport, name: str) -> None:
        self._transport, self._name = transport, name

    async def __call__(
        self, *, limit: int = USUAL_TASKS, after: str | None = None, **filters: Unpack[Filters]
    ) -> TaskPage:
        """At most `limit` tasks, the newest first, behind the cursor `after`: the `next` of a page.

        Tasks that are sent meanwhile change nothing in the pages behind a cursor.

        Raises:
            Unavailable: no keeper is there (it runs inside `xnai up`), or it does not answer.
            NotAllowed: somebody else's tasks are asked for, and the broker forbids it.
            InvalidArgument: the limit is not in 1 to 500, or `after` is no cursor.
        """
        return await self._ask(_query(limit, after, filters), everybody=filters.get("everybody", False))

    async def all(self, **filters: Unpack[Filters]) -> AsyncGenerator[TaskRow, None]:
        """Every task that there is now, the newest first, each once. Raises as asking for a page does."""
        query = _query(MOST_TASKS, None, filters)
        while True:
            page = await self._ask(query, everybody=filters.get("everybody", False))
            for row in page.tasks:
                yield row
            if page.next is None:
                return
            query = msgspec.structs.replace(query, after=page.next)

    async def _ask(self, query: TaskQuery, *, everybody: bool) -> TaskPage:
        place = subjects.listing(subjects.EVERYBODY if everybody else self._name)
        return decode(_read_page, await ask_keeper(self._transport, place, query, timeout=_TIMEOUT))


def _query(limit: int, after: str | None, filters: Filters) -> TaskQuery:
    state = filters.get("state")
    return check_query(
        TaskQuery(
            agent=filters.get("agent"),
            states=(state,) if isinstance(state, TaskState) else tuple(state or ()),
            context=filters.get("context"),
            parent=filters.get("parent"),
            since=_ago(filters.get("since")),
            before=_ago(filters.get("older")),
            limit=limit,
            after=after,
        )
    )


def _ago(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    if not 0 <= seconds <= time.time():
        raise InvalidArgument(f"An age is a number of seconds, not {seconds!r}.")
    return format_timestamp(time.time() - seconds)
