"""Who may what: the table of wire v1 as subjects that a broker allows. Whatever is not named is forbidden.

An agent may send as itself, write the events of its own tasks, pull them, and read its own; and an owner,
which every agent is too, may read what became of what it sent. Nobody makes a stream or a consumer: a
consumer brings what is stored to any subject, and so would forge what its maker could not say. The keeper
does it for them.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

import msgspec

from xnai.bus.access import ANSWERS, SERVICE_VERBS, SERVICES, answers_to, inbox_of, service_places
from xnai.bus.jetstream import hand_out
from xnai.protocol import subjects
from xnai.protocol.events import CANCEL, INPUT, OUTCOME
from xnai.protocol.names import LANES, SYSTEM

_API = "$JS.API"


class Kind(enum.StrEnum):
    """What somebody is to the bus."""

    SYSTEM = "system"
    """The keeper, who may do anything."""
    AGENT = "agent"
    """Serves its own name and its roles, and owns what it sends."""
    SUPERVISOR = "supervisor"
    """An agent that also tells other processes what to do."""
    PERSON = "person"
    """Owns what it sends, tells processes what to do, and may ask about all tasks."""
    GUEST = "guest"
    """May do nothing but ask to be let in."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody whom the broker knows.

    Attributes:
        name: as it stands in subjects.
        kind: what it is.
        roles: the agent names that it serves besides its own.
        keys: the public halves of its keys; while they change, the old and the new.
        machine: where its seed is, as that machine calls itself.
    """

    name: str
    kind: Kind
    roles: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    machine: str = ""


class Permissions(msgspec.Struct, frozen=True):
    """Subjects, wildcards allowed.

    Not among them: to answer where the asker says (`allow_responses`). Whoever may do that sends a message to
    itself, and then anywhere.
    """

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def permissions_of(who: Identity) -> Permissions:
    """What the broker allows; not for the keeper, who is not confined."""
    inbox = f"{inbox_of(who.name)}.>"
    if who.kind is Kind.GUEST:
        return Permissions((subjects.joining(who.name), f"{_API}.INFO"), (inbox,))
    publish, subscribe = [*_as_owner(who.name)], [inbox, *_heard_by_owner(who.name)]
    if who.kind in (Kind.AGENT, Kind.SUPERVISOR):
        served = dict.fromkeys((who.name, *who.roles))
        publish += _as_worker(who.name, served)
        subscribe += _heard_by_worker(who.name, served)
    if who.kind in (Kind.PERSON, Kind.SUPERVISOR):
        publish += [subjects.CONTROL_SUBJECTS, f"{SERVICES}.>", subjects.administering(who.name)]
        subscribe.append(f"{answers_to(who.name)}.>")
    if who.kind is Kind.SUPERVISOR:
        publish.append(subjects.declaring("*"))
    if who.kind is Kind.PERSON:
        publish.append(subjects.listing(">"))
    return Permissions(tuple(publish), tuple(subscribe))


def _as_owner(me: str) -> Iterable[str]:
    log = "xnai.v1.log.*"
    for lane in LANES:  # in another it would lie for ever: nobody pulls from there
        yield f"xnai.v1.task.*.{lane}.{me}.*.*"
        yield f"xnai.v1.due.*.{lane}.{me}.*.*"
    for kind in (CANCEL, INPUT, OUTCOME):
        yield f"{log}.{me}.*.*.{me}.{kind}"
    yield f"xnai.v1.blob.{me}.*.*.*"
    yield f"xnai.v1.read.*.{me}.*"
    yield subjects.listing(me)
    yield f"{_API}.INFO"
    yield f"{_API}.STREAM.NAMES"
    yield f"{_API}.CONSUMER.INFO.*.*"
    yield hand_out(subjects.CARD_STREAM)
    yield f"{hand_out('*')}.{log}.{me}.>"
    yield f"{hand_out('*')}.xnai.v1.task.*.*.{me}.>"
    yield f"{hand_out(subjects.BLOB_STREAM)}.xnai.v1.blob.{me}.>"
    yield f"{hand_out(subjects.BLOB_STREAM)}.xnai.v1.blob.*.{me}.>"


def _heard_by_owner(me: str) -> Iterable[str]:
    yield f"xnai.v1.live.*.{me}.>"
    yield f"xnai.v1.delta.*.{me}.>"
    yield subjects.ALIVE_SUBJECTS


def _as_worker(me: str, served: Iterable[str]) -> Iterable[str]:
    yield subjects.card(me)
    yield f"{ANSWERS}.>"
    for name in served:
        yield f"xnai.v1.log.{name}.*.*.*.{me}.*"
        yield f"xnai.v1.delta.{name}.*.*.*.{me}"
        yield f"xnai.v1.timer.{name}.>"
        yield subjects.dead(name, "*")
        yield subjects.declaring(name)
        yield f"{_API}.CONSUMER.MSG.NEXT.{subjects.task_stream(name)}.*"
        yield f"$JS.ACK.{subjects.task_stream(name)}.>"
        yield hand_out(subjects.log_stream(name))
        yield f"{hand_out(subjects.log_stream(name))}.>"
        yield f"{hand_out(subjects.BLOB_STREAM)}.xnai.v1.blob.*.{name}.>"


def _heard_by_worker(me: str, served: Iterable[str]) -> Iterable[str]:
    yield subjects.control(me, "*")
    for name in served:
        yield subjects.live_kind(name, CANCEL)
        yield subjects.live_kind(name, INPUT)
    for verb in SERVICE_VERBS:
        yield from service_places(verb, me, "*")


def of_system(*keys: str) -> Identity:
    """The keeper."""
    return Identity(name=SYSTEM, kind=Kind.SYSTEM, keys=keys)
