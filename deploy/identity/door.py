"""The door of a stack: who comes to be known to the broker, and who no more."""

from __future__ import annotations

import time
from typing import Protocol

import anyio
import msgspec

from xnai.bus import Server
from xnai.bus.keys import make_key
from xnai.bus.permissions import Kind
from xnai.deploy.identity.keyring import Keyring, Member, did_you_mean, taken
from xnai.deploy.identity.orders import Join, Newcomer
from xnai.protocol.errors import InvalidArgument, NotAllowed, XnaiError
from xnai.protocol.names import SUPERVISOR, check_name


class Door(Protocol):
    """What a supervisor needs of whoever lets its agents in."""

    @property
    def keyring(self) -> Keyring:
        """Those who live here, and whom else it knows."""

    async def admit_agent(self, name: str) -> None:
        """Let an agent in that the settings name."""

    async def give_roles(self, name: str, roles: tuple[str, ...]) -> None:
        """Let an agent that lives here serve these names besides its own, and no others."""

    async def dismiss(self, name: str) -> None:
        """Let an agent in no more that the settings name no more, if it is here because they did."""


class OwnDoor:
    """Lets members in, where the broker is our own: each change is on disk first, then in the server.

    Attributes:
        keyring: everybody.
        server: the broker.
    """

    def __init__(self, keyring: Keyring, server: Server) -> None:
        self.keyring, self.server = keyring, server
        self._changing = anyio.Lock()

    async def admit(
        self,
        name: str,
        kind: Kind,
        *,
        roles: tuple[str, ...] | None = None,
        key: str | None = None,
        machine: str | None = None,
        by_settings: bool = False,
    ) -> Member:
        """Let somebody in; with `key`, its public half, somebody who made it elsewhere.

        Where nothing is said of `roles`, whoever is known already keeps its own.

        Raises:
            InvalidArgument: the name belongs to somebody of another kind.
        """
        check_name(name, "member")
        for role in roles or ():
            check_name(role, "role")
        async with self._changing:
            known = self.keyring.kind_of(name)
            if known not in (None, kind):
                raise InvalidArgument(taken(name, known, kind))
            before = self.keyring.members()
            if key is None:
                self.keyring.ensure(name, kind, roles=roles or (), by_settings=by_settings)
            else:
                new = Member(name=name, kind=kind, machine=machine or self.keyring.machine)
                old = self.keyring.find(name, machine) or new
                keys = tuple(dict.fromkeys((*old.keys, key)))
                self.keyring.put(_with(old, keys=keys, roles=old.roles if roles is None else roles))
            await self._apply(before)
            member = self.keyring.find(name, machine)
            assert member is not None
            return member

    async def admit_agent(self, name: str) -> None:
        """As `Door`."""
        await self.admit(name, Kind.AGENT, by_settings=True)

    async def invite(self, name: str, until: float) -> str:
        """Let somebody ask to be let in, until then, in seconds since the epoch; the seed of its key."""
        async with self._changing:
            key = make_key(self.keyring.folder / f".{name}")
            seed = key.file.read_text()
            public = key.public
            key.file.unlink()
            guest = Member(name=name, kind=Kind.GUEST, keys=(public,), machine=name, until=until)
            self.keyring.put(guest)
            await self.server.reload(self.keyring.members())
            return seed

    async def admit_machine(self, asked: Join, guest: str) -> list[Member]:
        """Let in the supervisor of another machine, its people and its agents; its invitation is over then.

        Raises:
            NotAllowed: the invitation was used, or is over.
            InvalidArgument: a name is no name, or belongs to somebody of another kind.
        """
        check_name(asked.machine, "machine")
        async with self._changing:
            before = self.keyring.members()
            invitation = self.keyring.find(guest, guest)
            if invitation is None or invitation.kind is not Kind.GUEST or invitation.until <= time.time():
                raise NotAllowed(
                    "This invitation was used, or is over. Ask for another one: xnai keys invite"
                )
            if any(each.machine == asked.machine for each in before):
                raise InvalidArgument(
                    f"{asked.machine} has joined already. "
                    f"To let it join anew: xnai keys revoke {asked.machine}"
                )
            new = [_newcomer(each, asked.machine) for each in asked.members]
            for member in new:
                known = self.keyring.kind_of(member.name)
                if known not in (None, member.kind):
                    raise InvalidArgument(taken(member.name, known, member.kind))
            self.keyring.put(*new, _with(invitation, until=time.time()))
            await self._apply(before)
            return new

    async def forget_key(self, name: str, machine: str, key: str) -> None:
        """Take one of several keys from a member."""
        async with self._changing:
            before = self.keyring.members()
            member = self.keyring.find(name, machine)
            if member and len(member.keys) > 1 and key in member.keys:
                self.keyring.put(_with(member, keys=tuple(each for each in member.keys if each != key)))
            await self._apply(before)

    async def dismiss(self, name: str) -> None:
        """As `Door`."""
        async with self._changing:
            before = self.keyring.members()
            if (member := self.keyring.find(name)) and member.by_settings:
                self.keyring.remove(member)
                await self._apply(before)

    async def give_roles(self, name: str, roles: tuple[str, ...]) -> None:
        """As `Door`."""
        async with self._changing:
            before = self.keyring.members()
            if self.keyring.find(name):
                self.keyring.give_roles(name, roles)
            await self._apply(before)

    async def expel(self, name: str, machine: str | None = None) -> list[Member]:
        """Let somebody in no more, and cut the links that it has; on all machines where none is named.

        With the supervisor of a machine all go who live there: they came by it.

        Raises:
            InvalidArgument: nobody has this name, or it is one without which the stack cannot be.
        """
        async with self._changing:
            before = self.keyring.members()
            gone = [each for each in before if each.name == name and machine in (None, each.machine)]
            if not gone:
                names = [each.name for each in before if machine in (None, each.machine)]
                where = f" on {machine}" if machine else ""
                raise InvalidArgument(f"Nobody is known as {name}{where}{did_you_mean(name, names)}")
            if any(each.kind is Kind.SYSTEM or each.name == self.keyring.machine for each in gone):
                raise InvalidArgument(f"{name} keeps this stack: without its key nothing would.")
            machines = {each.machine for each in gone if each.kind is Kind.SUPERVISOR}
            gone += [each for each in before if each.machine in machines and each not in gone]
            self.keyring.remove(*gone)
            await self._apply(before)
            return gone

    async def rotate(self, names: list[str] | None = None) -> list[str]:
        """New keys for members that live here, all where none is named: each comes back with its new one.

        The broker takes the old and the new until `forget_old_keys`.

        Raises:
            InvalidArgument: one of the names is nobody's who lives here.
        """
        async with self._changing:
            chosen = self.keyring.residents(names or ())
            drafts = {member.name: self.keyring.draft(member.name) for member in chosen}
            try:
                self.keyring.put(
                    *(_with(each, keys=(*each.keys, drafts[each.name].public)) for each in chosen)
                )
                await self.server.reload(self.keyring.members())
            except XnaiError:  # the server does not take them: all stays as it was
                self.keyring.put(*chosen)
                for draft in drafts.values():
                    draft.file.unlink(missing_ok=True)
                raise
            for draft in drafts.values():  # now that it would be taken, whoever connects may show it
                self.keyring.take(draft)
            return [member.name for member in chosen]

    async def forget_old_keys(self, names: list[str]) -> None:
        """Let members that live here in with their newest key only; links that showed another are cut."""
        async with self._changing:
            before = self.keyring.members()
            for name in names:
                if member := self.keyring.find(name):
                    self.keyring.put(_with(member, keys=member.keys[-1:]))
            await self._apply(before)

    async def _apply(self, before: list[Member]) -> None:
        now = self.keyring.members()
        if now != before:
            await self.server.reload(now)


def _with(member: Member, **changes: object) -> Member:
    return msgspec.structs.replace(member, **changes)


def _newcomer(who: Newcomer, machine: str) -> Member:
    check_name(who.name, "member")
    is_supervisor = who.name == machine
    if who.kind is not Kind.SUPERVISOR and (who.kind not in (Kind.AGENT, Kind.PERSON) or is_supervisor):
        raise InvalidArgument(f"{who.name} cannot join as a {who.kind}.")
    if who.kind is Kind.SUPERVISOR and not is_supervisor:
        raise InvalidArgument(f"{who.name} is not the supervisor of {machine}.")
    roles = (SUPERVISOR,) if is_supervisor else ()
    return Member(name=who.name, kind=who.kind, roles=roles, keys=(who.key,), machine=machine)
