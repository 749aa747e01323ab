"""Every subject, stream and consumer name of wire v1, each spelled here and nowhere else.

Callers pass tokens that went through `xnai.protocol.names`. Some of these functions run several times a
task, so they only format.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from xnai.protocol import names
from xnai.protocol.errors import MalformedMessage

_LOG = "xnai.v1.log."
_LIVE = "xnai.v1.live."
DEAD_STREAM = "XNAI_DEAD"
DEAD_SUBJECTS = "xnai.v1.dead.>"
BLOB_STREAM = "XNAI_BLOB"
BLOB_SUBJECTS = "xnai.v1.blob.>"
TASK_STREAM_PREFIX = "XNAI_TASK_"
CARD_STREAM = "XNAI_CARD"
CARD_SUBJECTS = "xnai.v1.card.>"
ALIVE_SUBJECTS = "xnai.v1.alive.>"
CONTROL_SUBJECTS = "xnai.v1.agent.>"
EVERYBODY = "-"
_IS_TASK = re.compile(rf"xnai\.v1\.task(\.{names.NAME}){{4}}\.{names.ID}").fullmatch
_IS_EVENT = re.compile(
    rf"xnai\.v1\.(log|live)(\.{names.NAME}){{2}}(\.{names.ID}){{2}}(\.{names.NAME}){{2}}"
).fullmatch


class TaskSubject(NamedTuple):
    """`xnai.v1.task.<agent>.<lane>.<sender>.<skill>.<id>`, read."""

    agent: str
    lane: str
    sender: str
    skill: str
    id: str


class EventSubject(NamedTuple):
    """`xnai.v1.log.<agent>.<sender>.<id>.<instance>.<writer>.<kind>` (or `live`), read."""

    agent: str
    sender: str
    id: str
    instance: str
    writer: str
    kind: str


def task_stream(agent: str) -> str:
    return f"{TASK_STREAM_PREFIX}{agent}"


def log_stream(agent: str) -> str:
    return f"XNAI_LOG_{agent}"


def task(to: TaskSubject) -> str:
    return f"xnai.v1.task.{to.agent}.{to.lane}.{to.sender}.{to.skill}.{to.id}"


def tasks(agent: str, *, lane: str = "*") -> str:
    """All tasks of an agent, or of one of its lanes."""
    return f"xnai.v1.task.{agent}.{'>' if lane == '*' else f'{lane}.>'}"


def queued(agent: str, sender: str, id: str) -> str:
    """One task in the queue of an agent, whatever its lane and skill."""
    return f"xnai.v1.task.{agent}.*.{sender}.*.{id}"


def event(about: EventSubject) -> str:
    return f"{_LOG}{about.agent}.{about.sender}.{about.id}.{about.instance}.{about.writer}.{about.kind}"


def log(agent: str, sender: str = "*", id: str = "*") -> str:
    """The whole log of an agent, or of one task."""
    return f"{_LOG}{agent}.>" if id == "*" and sender == "*" else f"{_LOG}{agent}.{sender}.{id}.>"


def gate(agent: str, sender: str, id: str) -> str:
    """Where the outcome of a task stands, whoever wrote it.

    In a cluster the broker compares the filters of writes in flight as strings: two spellings admit two
    outcomes. So every writer of an event takes the filter from here.
    """
    return f"{_LOG}{agent}.{sender}.{id}.*.*.outcome"


def outcomes(agent: str) -> str:
    """The outcomes of all tasks of an agent."""
    return f"{_LOG}{agent}.*.*.*.*.outcome"


def live_destination(agent: str) -> str:
    """Where the broker republishes what it stored in the log of an agent."""
    return f"{_LIVE}{agent}.>"


def live_of_instance(sender: str, instance: str) -> str:
    """All events of the tasks that one bus sent."""
    return f"{_LIVE}*.{sender}.*.{instance}.>"


def live_of_task(sender: str, id: str) -> str:
    """All events of one task, whichever bus sent it."""
    return f"{_LIVE}*.{sender}.{id}.>"


def live_kind(agent: str, kind: str) -> str:
    """All events of one kind in the log of an agent."""
    return f"{_LIVE}{agent}.*.*.*.*.{kind}"


def delta(agent: str, sender: str, id: str, *, instance: str, writer: str) -> str:
    return f"xnai.v1.delta.{agent}.{sender}.{id}.{instance}.{writer}"


def deltas_of_instance(sender: str, instance: str) -> str:
    return f"xnai.v1.delta.*.{sender}.*.{instance}.*"


def deltas_of_task(sender: str, id: str) -> str:
    return f"xnai.v1.delta.*.{sender}.{id}.>"


def dead(agent: str, id: str = "-") -> str:
    """A dead letter; `-` stands for bytes that are no message."""
    return f"xnai.v1.dead.{agent}.{id}"


def blob(writer: str, reader: str, sha256: str, chunk: int | str = "*") -> str:
    return f"xnai.v1.blob.{writer}.{reader}.{sha256}.{chunk}"


def card(agent: str, instance: str = "*") -> str:
    """The card of one instance, or those of all instances of an agent."""
    return f"xnai.v1.card.{agent}.{instance}"


def held_card(alive: str) -> str:
    """Where the card stands that the broker republished as `alive`."""
    return f"xnai.v1.card.{alive.removeprefix(ALIVE_SUBJECTS[:-1])}"


def control(agent: str, instance: str) -> str:
    """Where one process is asked: ping, probe, drain."""
    return f"xnai.v1.agent.{agent}.{instance}"


def reading(agent: str, sender: str, id: str) -> str:
    """Where the keeper is asked for the events of a task: its sender cannot read a log itself."""
    return f"xnai.v1.read.{agent}.{sender}.{id}"


def declaring(agent: str) -> str:
    """Where the keeper is asked to make the queue and the log of an agent."""
    return f"xnai.v1.declare.{agent}"


def listing(sender: str) -> str:
    """Where the keeper is asked for the tasks of a sender; `-` means everybody's."""
    return f"xnai.v1.tasks.{sender}"


def administering(sender: str) -> str:
    """Where the keeper is asked to let somebody in, or to shut somebody out."""
    return f"xnai.v1.keys.{sender}"


def joining(guest: str) -> str:
    """Where a guest asks the keeper to let its machine in."""
    return f"xnai.v1.join.{guest}"


def agent_of_stream(stream: str) -> str:
    """The agent whose queue `stream` is."""
    return stream.removeprefix(TASK_STREAM_PREFIX)


def read_task(subject: str) -> TaskSubject:
    """The tokens of a task's subject, as a hostile sender may have written it.

    A wildcard is a letter in it, and would open a gate made from it wide; a token that is too long would make
    a subject for which the broker ends the connection.

    Raises:
        MalformedMessage: it is none.
    """
    if not _IS_TASK(subject):
        raise MalformedMessage(f"{subject[:200]!r} is not the subject of a task.")
    return TaskSubject(*subject.split(".")[3:])


def read_event(subject: str) -> EventSubject:
    """The tokens of an event's subject, stored or live; as strict as `read_task`.

    Raises:
        MalformedMessage: it is none.
    """
    if not _IS_EVENT(subject):
        raise MalformedMessage(f"{subject[:200]!r} is not the subject of an event.")
    return EventSubject(*subject.split(".")[3:])


def stored_subject(live: str) -> str:
    """The subject in the log of which the broker republished `live`."""
    return _LOG + live[len(_LIVE) :]
