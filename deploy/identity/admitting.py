"""The keeper answers those who say who is let in: the people of a stack, and supervisors for their own."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from xnai.bus.asking import answering
from xnai.bus.permissions import Kind
from xnai.bus.transport import Transport
from xnai.deploy.identity.door import Door
from xnai.deploy.identity.keyring import Member
from xnai.deploy.identity.orders import Admit, Question, Revoke, Rotate, read_question
from xnai.protocol import subjects
from xnai.protocol.errors import InvalidArgument, NotAllowed

log = logging.getLogger(__name__)
_MAY_COME = (Kind.AGENT, Kind.PERSON)


@asynccontextmanager
async def admitting(transport: Transport, door: Door) -> AsyncIterator[None]:
    """Answer while the context is open."""

    async def answer(tokens: list[str], question: bytes) -> list[Member]:
        asker = tokens[-1]
        try:
            return await _answer(door, asker, read_question(question))
        except msgspec.MsgspecError as error:
            raise InvalidArgument(f"This is no question about members: {error}.") from error

    async with answering(transport, subjects.administering("*"), answer):
        yield


async def _answer(door: Door, asker: str, question: Question) -> list[Member]:
    """What changed, or everybody."""
    kind = door.keyring.kind_of(asker)
    if isinstance(question, Admit):
        return [await _admit(door, asker, question)]
    if kind is not Kind.PERSON:
        raise NotAllowed(f"{asker} is no person: it may let in its own agents, and nothing else.")
    if isinstance(question, Rotate):
        changed = await door.rotate(question.names or None)
        log.info("keys are new", extra={"by": asker, "of": ",".join(changed)})
        return [member for name in changed if (member := door.keyring.find(name))]
    if isinstance(question, Revoke):
        log.info("a key is revoked", extra={"by": asker, "of": question.name})
        return await door.expel(question.name, question.machine)
    return door.keyring.members()


async def _admit(door: Door, asker: str, who: Admit) -> Member:
    if who.kind not in _MAY_COME:
        raise NotAllowed(f"A {who.kind} cannot be let in like this.")
    machine = who.machine or door.keyring.machine
    if door.keyring.kind_of(asker) is Kind.SUPERVISOR and machine != asker:
        raise NotAllowed(f"{asker} may let in what lives with it, and nothing else.")
    known = door.keyring.find(who.name, machine)
    if known and known.kind is who.kind and known.roles == who.roles and who.key in known.keys:
        return known
    log.info("somebody is let in", extra={"by": asker, "who": who.name, "kind": who.kind})
    return await door.admit(who.name, who.kind, roles=who.roles, key=who.key, machine=machine)
