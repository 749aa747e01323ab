"""The broker of a stack: one of the settings, one that was joined, or otherwise our own."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec

from xnai.bus import Bus, Server, ServerOptions
from xnai.bus.background import background_tasks
from xnai.bus.locating import Address, login_name, sender_name
from xnai.deploy.identity.certificates import SERVER_NAME, own_certificates
from xnai.deploy.identity.door import Door, OwnDoor
from xnai.deploy.identity.keyring import Keyring
from xnai.deploy.identity.remote import RemoteDoor
from xnai.deploy.plan import Plan, ServerPlan
from xnai.deploy.stack import Stack

_RESTART_DELAY = 1.0
Say = Callable[[str], None]


class Broker:
    """A broker that is up, and how members of the stack come to be let in.

    Attributes:
        address: where it is, and the keys for it.
        own_door: who lets members in, where it is our own.
    """

    def __init__(self, address: Address, keyring: Keyring | None = None, server: Server | None = None):
        self.address, self._keyring = address, keyring
        self.own_door = OwnDoor(keyring, server) if keyring is not None and server is not None else None

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is kept by the stack that we have joined."""
        return self._keyring is not None and self.own_door is None

    def door(self, bus: Bus) -> Door | None:
        """Who lets our agents in, asked over `bus`; None where the broker lets everybody do everything."""
        if self._keyring is not None and self.own_door is None:
            return RemoteDoor(self._keyring, bus.transport)
        return self.own_door


@asynccontextmanager
async def open_broker(stack: Stack, plan: Plan, name: str, say: Say) -> AsyncIterator[Broker]:
    """The broker of a stack while the context is open; our own is started again when it dies.

    `name` is that of the stack's supervisor.

    Raises:
        NoBus, ServerTooOld, InvalidSettings: our own does not come up.
    """
    table = plan.server
    if table.url is not None:
        yield Broker(Address(url=table.url, token=table.token, ca=_absolute(table.ca), pid=os.getpid()))
        return
    keyring = Keyring(stack.folder, name)
    if (joined := stack.joined()) is not None:
        yield Broker(msgspec.structs.replace(joined, pid=os.getpid()), keyring)
        return
    keyring.ensure_all(agents=list(plan.agents), people=[login_name(), sender_name(None)])
    options, ca, server_name = await _options(table, stack.folder)
    async with stack.server(options, keyring.members()) as server, background_tasks() as tasks:
        tasks.start_soon(_restart, server, say)
        say(f"nats-server listens at {server.url}, its data is in {server.folder}")
        key = str(keyring.folder)
        address = Address(url=server.url, key=key, ca=ca, server_name=server_name, pid=os.getpid())
        yield Broker(address, keyring, server)


async def _options(table: ServerPlan, folder: Path) -> tuple[ServerOptions, str | None, str | None]:
    """How our own server runs, who vouches for it, and under what name."""
    if not table.tls:
        return table, None, None
    if table.certificate is not None:
        given = {"certificate": _absolute(table.certificate), "key": _absolute(table.key)}
        return msgspec.structs.replace(table, **given), _absolute(table.ca), None
    own = await own_certificates(folder / "tls")
    options = msgspec.structs.replace(table, certificate=str(own.certificate), key=str(own.key))
    return options, str(own.ca), SERVER_NAME


def _absolute(file: str | None) -> str | None:
    return file and str(Path(file).absolute())


async def _restart(server: Server, say: Say) -> None:
    while (process := server.process) is not None:
        status = await anyio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
        say(f"nats-server ended with status {status}; starts again in {_RESTART_DELAY:g} s")
        await anyio.sleep(_RESTART_DELAY)
        await server.start()
