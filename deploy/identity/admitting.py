"""The keeper answers those who say who is let in: the people of a stack, and supervisors for their own."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import msgspec
from anyio.abc import TaskGroup

from xnai.bus.asking import answering
from xnai.bus.background import background_tasks
from xnai.bus.locating import Address
from xnai.bus.permissions import Kind
from xnai.bus.transport import Transport
from xnai.deploy.identity.door import OwnDoor
from xnai.deploy.identity.keyring import Member
from xnai.deploy.identity.orders import (
    Admit,
    Everybody,
    ForgetKey,
    Invitation,
    Invite,
    Question,
    Revoke,
    Rotate,
    read_join,
    read_question,
)
from xnai.protocol import subjects
from xnai.protocol.errors import InvalidArgument, NotAllowed, Unavailable, XnaiError

log = logging.getLogger(__name__)
_MAY_COME = (Kind.AGENT, Kind.PERSON)
_FAREWELL = 1.0  # seconds in which an answer is heard that ends the asker's own link


@asynccontextmanager
async def admitting(transport: Transport, door: OwnDoor, at: Address) -> AsyncIterator[None]:
    """Answer while the context is open; `at` is where our broker is."""
    async with AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(background_tasks())
        desk = _Desk(door, at, tasks)
        tasks.start_soon(desk.see_guests_off)
        answers = {subjects.administering("*"): desk.answer, subjects.joining("*"): desk.join}
        for subject, answer in answers.items():
            await stack.enter_async_context(answering(transport, subject, answer))
        yield


class _Desk:
    def __init__(self, door: OwnDoor, at: Address, tasks: TaskGroup) -> None:
        self._door, self._at, self._tasks = door, at, tasks
        self._guests = anyio.Event()

    async def answer(self, tokens: list[str], question: bytes) -> list[Member] | Invitation:
        """What changed, or everybody, or an invitation."""
        try:
            asked = read_question(question)
        except msgspec.MsgspecError as error:
            raise InvalidArgument(f"This is no question about members: {error}.") from error
        try:
            return await self._answer(tokens[-1], asked)
        except OSError as error:  # the disk is full, for example
            raise Unavailable(f"The keys cannot be changed: {error}.") from error

    async def _answer(self, asker: str, asked: Question) -> list[Member] | Invitation:
        if isinstance(asked, Admit):
            return [await self._admit(asker, asked)]
        if isinstance(asked, ForgetKey):
            self._check_place(asker, asked.machine)
            await self._door.forget_key(asked.name, asked.machine, asked.key)
            return []
        if isinstance(asked, Revoke) and asked.machine == asker:
            return await self._door.expel(asked.name, asker)
        if self._door.keyring.kind_of(asker) is not Kind.PERSON:
            raise NotAllowed(f"{asker} is no person: it may let in what lives with it, and nothing else.")
        return await self._answer_person(asker, asked)

    async def _answer_person(
        self, asker: str, asked: Rotate | Revoke | Invite | Everybody
    ) -> list[Member] | Invitation:
        keyring = self._door.keyring
        if isinstance(asked, Rotate):
            changed = await self._door.rotate(asked.names or None)
            self._tasks.start_soon(self._forget_old, changed)
            log.info("keys are new", extra={"by": asker, "of": ",".join(changed)})
            return [member for name in changed if (member := keyring.find(name))]
        if isinstance(asked, Revoke):
            if asked.name == asker:
                raise InvalidArgument(
                    f"{asker} asks for that itself, and would not hear the answer. "
                    f"For a new key: xnai keys rotate {asker}"
                )
            gone = await self._door.expel(asked.name, asked.machine)
            log.info("a key is revoked", extra={"by": asker, "of": asked.name})
            return gone
        if isinstance(asked, Invite):
            log.info("a machine is invited", extra={"by": asker})
            return await self._invite(asked)
        return keyring.members()

    async def _admit(self, asker: str, who: Admit) -> Member:
        machine = who.machine or self._door.keyring.machine
        self._check_place(asker, machine)
        known = self._door.keyring.find(who.name, machine)
        if who.kind not in _MAY_COME and not (who.kind is Kind.SUPERVISOR and known):
            raise NotAllowed(f"A {who.kind} cannot be let in like this.")
        if known and known.kind is who.kind and who.roles in (None, known.roles) and who.key in known.keys:
            return known
        log.info("somebody is let in", extra={"by": asker, "who": who.name, "kind": who.kind})
        return await self._door.admit(who.name, who.kind, roles=who.roles, key=who.key, machine=machine)

    def _check_place(self, asker: str, machine: str) -> None:
        """A supervisor speaks for its own machine, a person for all."""
        if self._door.keyring.kind_of(asker) is Kind.SUPERVISOR and machine != asker:
            raise NotAllowed(f"{asker} may let in what lives with it, and nothing else.")

    async def _forget_old(self, names: list[str]) -> None:
        """Take the old keys from members once whoever asked for that has heard that there are new ones."""
        await anyio.sleep(_FAREWELL)
        try:
            await self._door.forget_old_keys(names)
        except (XnaiError, OSError) as error:
            log.error("old keys are taken until the stack starts again: %s", error)

    # Guests

    async def _invite(self, asked: Invite) -> Invitation:
        guest = f"guest-{secrets.token_hex(8)}"
        seed = await self._door.invite(guest, time.time() + asked.seconds)
        self._guests.set()
        ca = Path(self._at.ca).read_text() if self._at.ca else None
        return Invitation(url=self._at.url, ca=ca, server_name=self._at.server_name, guest=guest, seed=seed)

    async def join(self, tokens: list[str], question: bytes) -> list[Member]:
        """Let a machine in whose guest asks, once."""
        try:
            asked = read_join(question)
        except msgspec.MsgspecError as error:
            raise InvalidArgument(f"This is no question to be let in: {error}.") from error
        members = await self._door.admit_machine(asked, tokens[-1])
        log.info("a machine has joined", extra={"machine": asked.machine})
        self._guests.set()  # the guest is seen off once it has its answer
        return members

    async def see_guests_off(self) -> None:
        """Let no guest in whose invitation is used or over, until cancelled."""
        while True:
            await anyio.sleep(_FAREWELL)
            try:
                guests = await self._see_off()
            except (XnaiError, OSError) as error:
                log.error("a guest may be here longer than it should: %s", error)
                continue
            if not guests:
                self._guests = anyio.Event()
                await self._guests.wait()

    async def _see_off(self) -> int:
        """How many guests there were."""
        guests = [each for each in self._door.keyring.members() if each.kind is Kind.GUEST]
        for guest in guests:
            if guest.until + _FAREWELL < time.time():
                await self._door.expel(guest.name)
        return len(guests)
