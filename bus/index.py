"""The index of tasks: one row a task, in a SQLite file that can be made anew from queues and logs.

Each step is one transaction that also holds how far the streams of an agent are read, so a crash between two
of them loses and repeats nothing. All of it blocks.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from xnai.bus.finding import read_outcome
from xnai.bus.jetstream import Stored
from xnai.protocol import subjects
from xnai.protocol.a2a import TaskState, TaskStatus
from xnai.protocol.envelope import encode, read_envelope
from xnai.protocol.errors import MalformedMessage
from xnai.protocol.events import (
    FAILED,
    OUTCOME,
    RETURNED,
    STATUS,
    WORKING,
    ErrorInfo,
    Facts,
    error_in,
    facts_of,
    read_body,
)
from xnai.protocol.listing import Place, TaskQuery, TaskRow, read_cursor
from xnai.protocol.subjects import EventSubject
from xnai.protocol.timestamps import format_timestamp, parse_timestamp

_VERSION = 1
_LONGEST_SENTENCE = 2_000
_LONGEST_ID = 128
_HIGHEST_ATTEMPT = 1 << 31  # a foreign writer may name one that SQLite cannot hold
_SPOILT = frozenset({sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})

# `queued` and `ended` are sequences. A row without both holds what a log says of a task that is in no queue.
_SCHEMA = f"""
CREATE TABLE streams (
    agent TEXT PRIMARY KEY, made TEXT, queue INTEGER, log INTEGER, removed INTEGER
) WITHOUT ROWID;
CREATE TABLE tasks (
    agent TEXT, sender TEXT, id TEXT,
    skill TEXT, context TEXT, lane TEXT, parent TEXT, sent TEXT,
    state TEXT, updated TEXT, attempt INTEGER, error TEXT,
    queued INTEGER, ended INTEGER,
    PRIMARY KEY (agent, sender, id)
) WITHOUT ROWID;
CREATE INDEX by_age ON tasks (sent, id, agent, sender);
CREATE INDEX by_id ON tasks (id);
CREATE INDEX by_parent ON tasks (parent) WHERE parent IS NOT NULL;
CREATE INDEX by_end ON tasks (agent, ended) WHERE ended IS NOT NULL;
CREATE INDEX by_queue ON tasks (agent, queued) WHERE queued IS NOT NULL AND ended IS NULL;
PRAGMA user_version = {_VERSION};
"""
_QUEUED = """
INSERT INTO tasks VALUES (
    :agent, :sender, :id, :skill, :context, :lane, :parent, :sent, :state, :updated, 0, NULL,
    :queued, NULL)
ON CONFLICT DO UPDATE SET skill = excluded.skill, context = excluded.context, lane = excluded.lane,
    parent = excluded.parent, sent = excluded.sent, queued = excluded.queued WHERE ended IS NULL
"""
_STANDS = """
INSERT INTO tasks (agent, sender, id, state, updated, attempt, error)
VALUES (:agent, :sender, :id, :state, :updated, :attempt, :error)
ON CONFLICT DO UPDATE SET state = excluded.state, updated = excluded.updated,
    attempt = max(attempt, excluded.attempt), error = excluded.error WHERE ended IS NULL
"""
_ENDED = """
INSERT INTO tasks VALUES (
    :agent, :sender, :id, :skill, :context, :lane, :parent, :sent, :state, :updated, :attempt, :error,
    NULL, :ended)
ON CONFLICT DO UPDATE SET skill = excluded.skill, context = excluded.context, lane = excluded.lane,
    parent = excluded.parent, sent = excluded.sent, state = excluded.state, updated = excluded.updated,
    attempt = max(attempt, excluded.attempt), error = excluded.error, ended = excluded.ended
"""
_FIND = """
SELECT id, agent, skill, sender, context, lane, parent, state, sent, updated, attempt, error FROM tasks
WHERE (ended IS NOT NULL OR queued IS NOT NULL)
AND (:asker IS NULL OR CASE WHEN :parent IS NULL THEN sender = :asker
    ELSE EXISTS (SELECT 1 FROM tasks WHERE id = :parent AND sender = :asker) END)
AND (:parent IS NULL OR id IN (
    WITH RECURSIVE below (id) AS (
        SELECT id FROM tasks WHERE parent = :parent
        UNION SELECT tasks.id FROM tasks JOIN below ON tasks.parent = below.id)
    SELECT id FROM below))
AND (:of_agent IS NULL OR agent = :of_agent)
AND (:states = '' OR instr(:states, state))
AND (:context IS NULL OR context = :context)
AND (:since IS NULL OR sent >= :since) AND (:before IS NULL OR sent < :before)
AND (:sent IS NULL OR (sent, id, agent, sender) < (:sent, :id, :agent, :sender))
ORDER BY sent DESC, id DESC, agent DESC, sender DESC LIMIT :limit
"""


class Reach(msgspec.Struct, frozen=True):
    """How far the streams of an agent are read.

    Attributes:
        made: when its queue and its log were made: others of these names are other streams.
        queue, log: the last sequences read.
        removed: how many messages the log had lost then.
    """

    made: str
    queue: int = 0
    log: int = 0
    removed: int = 0


class Index:
    """The index in one file, open; made if there is none of this version."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._db = sqlite3.connect(file, check_same_thread=False)
        try:
            self._prepare()
        except sqlite3.Error:
            self._db.close()
            raise

    def _prepare(self) -> None:
        if self._db.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
            tables = self._db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
            for (name,) in tables:
                self._db.execute(f'DROP TABLE "{name}"')  # of another version of ours
            self._db.executescript(f"PRAGMA journal_mode = WAL; BEGIN; {_SCHEMA} COMMIT;")
        self._db.execute("PRAGMA synchronous = NORMAL")

    def close(self) -> None:
        self._db.close()

    def is_there(self) -> bool:
        """Whether its file still exists: what is deleted is made anew."""
        return self._file.exists()

    # How far the streams are read

    def reaches(self) -> dict[str, Reach]:
        """By agent."""
        return {agent: Reach(*rest) for agent, *rest in self._db.execute("SELECT * FROM streams")}

    def forget(self, agent: str) -> None:
        """Read this agent from the start."""
        with self._db:
            self._db.execute("DELETE FROM tasks WHERE agent = ?", (agent,))
            self._db.execute("DELETE FROM streams WHERE agent = ?", (agent,))

    def remove_before(self, agent: str, first: int) -> int:
        """Remove what ended before the sequence `first`; returns how many ended ones are left."""
        with self._db:
            self._db.execute("DELETE FROM tasks WHERE agent = ? AND ended < ?", (agent, first))
        return self._number("SELECT count(*) FROM tasks WHERE agent = ? AND ended IS NOT NULL", agent)

    def open_tasks(self, agent: str) -> tuple[int, int]:
        """How many tasks of an agent are queued and have not ended, and the lowest of their sequences."""
        of = "FROM tasks WHERE agent = ? AND queued IS NOT NULL AND ended IS NULL"
        count = self._number(f"SELECT count(*) {of}", agent)
        return count, self._number(f"SELECT coalesce(min(queued), 0) {of}", agent)

    def _number(self, question: str, agent: str) -> int:
        number: int = self._db.execute(question, (agent,)).fetchone()[0]
        return number

    # What the streams say

    def take_queued(self, agent: str, reach: Reach, messages: Iterable[Stored]) -> None:
        """Messages of a queue, in order, behind which it is read as far as `reach` says."""
        with self._db:
            for stored in messages:
                with suppress(MalformedMessage):  # the agent's worker keeps it as a dead letter
                    self._db.execute(_QUEUED, _queued(stored))
            self._keep(agent, reach)

    def take_events(self, agent: str, reach: Reach, messages: Iterable[Stored]) -> None:
        """Messages of a log, in order, behind which it is read as far as `reach` says."""
        with self._db:
            for stored in messages:
                with suppress(MalformedMessage):  # somebody else wrote it: it says nothing
                    self._take_event(stored)
            self._keep(agent, reach)

    def _take_event(self, stored: Stored) -> None:
        about = subjects.read_event(stored.subject)
        if about.kind == OUTCOME:
            self._db.execute(_ENDED, _ended(about, stored))
        elif about.kind in (WORKING, STATUS, FAILED, RETURNED):
            body = read_body(about.kind, stored.data)
            status: TaskStatus = body.status  # type: ignore[union-attr]  # the kind says which body
            self._db.execute(_STANDS, _stands(about, stored, status, facts_of(body)))

    def _keep(self, agent: str, reach: Reach) -> None:
        values = (agent, *msgspec.structs.astuple(reach))
        self._db.execute("INSERT OR REPLACE INTO streams VALUES (?, ?, ?, ?, ?)", values)

    # Questions

    def find(self, query: TaskQuery, asker: str | None, limit: int) -> list[TaskRow]:
        """So many of the tasks that `query` describes, of one sender or of all, the newest first."""
        values = {
            "asker": asker,
            "of_agent": query.agent,
            "states": " ".join(query.states),
            "context": query.context,
            "parent": query.parent,
            "since": _canonical(query.since),
            "before": _canonical(query.before),
            "limit": limit,
            **dict.fromkeys(Place._fields),
        }
        if query.after is not None:
            values |= read_cursor(query.after)._asdict()
        return [_row(found) for found in self._db.execute(_FIND, values)]


def remove(file: Path) -> None:
    """Remove an index with all that SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        file.with_name(file.name + suffix).unlink(missing_ok=True)


def is_spoilt(error: sqlite3.Error) -> bool:
    """Whether the file is to blame, and not what is around it: a full disk, a missing right."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)
    return (code & 0xFF) in _SPOILT


def _queued(stored: Stored) -> dict[str, Any]:
    task = read_envelope(stored.data, subjects.read_task(stored.subject))
    return {
        **task.subject._asdict(),
        "context": _short(task.context),
        "parent": _short(task.parent),
        "sent": _time(task.sent, stored),
        "state": TaskState.SUBMITTED,
        "updated": format_timestamp(stored.time),
        "queued": stored.sequence,
    }


def _stands(about: EventSubject, stored: Stored, status: TaskStatus, facts: Facts) -> dict[str, Any]:
    return {
        "agent": about.agent,
        "sender": about.sender,
        "id": about.id,
        "state": status.state,
        "updated": _time(status.timestamp, stored),
        "attempt": min(facts.attempt, _HIGHEST_ATTEMPT),
        "error": _error(error_in(status)),
    }


def _ended(about: EventSubject, stored: Stored) -> dict[str, Any]:
    """The row of a task is what its outcome says: made anew, it comes out the same."""
    try:
        task = read_outcome(stored.data)
    except MalformedMessage:  # somebody else wrote it, and no other is admitted
        status, facts, context = TaskStatus(state=TaskState.UNSPECIFIED), Facts(), None
    else:
        status, facts, context = task.status, facts_of(task), task.context_id
    return {
        **_stands(about, stored, status, facts),
        "skill": _short(facts.skill),
        "context": _short(context),
        "lane": _short(facts.lane),
        "parent": _short(facts.parent) or None,
        "sent": _time(facts.sent, stored),
        "ended": stored.sequence,
    }


def _time(said: str | None, stored: Stored) -> str:
    """A time as it is written here, so that texts compare as times; that of the broker where none is said."""
    try:
        return format_timestamp(parse_timestamp(said)) if said else format_timestamp(stored.time)
    except MalformedMessage:
        return format_timestamp(stored.time)


def _short(said: str | None) -> str | None:
    """A name or an id; what a foreign writer puts in its place is cut to the length of one."""
    return said and said[:_LONGEST_ID]


def _canonical(said: str | None) -> str | None:
    return None if said is None else format_timestamp(parse_timestamp(said))


def _error(error: ErrorInfo | None) -> str | None:
    if error is None:
        return None
    message = error.message
    if len(message) > _LONGEST_SENTENCE:
        message = f"{message[:_LONGEST_SENTENCE]}…"
    return encode(
        ErrorInfo(code=error.code[:_LONGEST_ID], message=message, retryable=error.retryable)
    ).decode()


def _row(found: Sequence[Any]) -> TaskRow:
    *values, error = found
    return msgspec.convert(
        dict(zip(TaskRow.__struct_fields__, (*values, error and msgspec.json.decode(error)), strict=True)),
        TaskRow,
    )
