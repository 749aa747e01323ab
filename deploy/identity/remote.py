"""The door of a stack that has joined the broker of another machine: its keeper is asked."""

from __future__ import annotations

from contextlib import suppress

from xnai.bus.asking import ask_keeper
from xnai.bus.permissions import Kind
from xnai.bus.transport import Transport
from xnai.deploy.identity.keyring import Keyring, Member
from xnai.deploy.identity.orders import Admit, Question, Revoke
from xnai.protocol import subjects
from xnai.protocol.errors import InvalidArgument, XnaiError


class RemoteDoor:
    """Lets those in who live here, over the link of our supervisor; raises as `ask_keeper` does."""

    def __init__(self, keyring: Keyring, transport: Transport) -> None:
        self.keyring, self._transport = keyring, transport

    async def admit_agent(self, name: str) -> None:
        """As `Door`."""
        is_new = self.keyring.find(name) is None
        member = self.keyring.ensure(name, Kind.AGENT, by_settings=True)
        try:
            await self._admit(member)
        except XnaiError:
            if is_new:
                self.keyring.remove(member)
            raise

    async def give_roles(self, name: str, roles: tuple[str, ...]) -> None:
        """As `Door`."""
        if self.keyring.find(name):
            await self._admit(self.keyring.give_roles(name, roles))

    async def dismiss(self, name: str) -> None:
        """As `Door`."""
        if (member := self.keyring.find(name)) and member.by_settings:
            with suppress(InvalidArgument):  # it was revoked before
                await self._ask(Revoke(name, self.keyring.machine))
            self.keyring.remove(member)

    async def _admit(self, member: Member) -> None:
        key = self.keyring.key(member.name).public
        machine = self.keyring.machine
        await self._ask(
            Admit(name=member.name, kind=member.kind, key=key, roles=member.roles, machine=machine)
        )

    async def _ask(self, question: Question) -> None:
        await ask_keeper(self._transport, subjects.administering(self.keyring.machine), question)
