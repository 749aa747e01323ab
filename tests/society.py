"""A broker that knows everybody by their keys, its keeper, and members who join it as themselves."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import msgspec
from anyio.abc import TaskStatus

from xnai.agents import Agent, Worker, serve
from xnai.bus import Bus, Limits, Server, open_bus, open_server
from xnai.bus.background import background_tasks
from xnai.bus.keeper_service import KeeperService
from xnai.bus.keys import SUFFIX, make_key
from xnai.bus.locating import Address
from xnai.bus.permissions import Identity, Kind
from xnai.bus.streams import declare_shared
from xnai.protocol.names import SYSTEM

SMALL = Limits(log=16 << 20, queue=200, blobs=64 << 20)


class Society:
    """Who is known, and the ways to the broker that each has."""

    def __init__(self, server: Server, keys: Path, keeper: Bus) -> None:
        self.server, self.keys, self.keeper = server, keys, keeper
        self._keeping, self._kept = anyio.CancelScope(), anyio.Event()

    async def keep(self, *, task_status: TaskStatus[None]) -> None:
        """Let the keeper answer, until it is to leave."""
        self._keeping, self._kept = anyio.CancelScope(), anyio.Event()
        with self._keeping:
            async with KeeperService(self.keeper.transport, SMALL).open():
                task_status.started()
                await anyio.sleep_forever()
        self._kept.set()

    async def keeper_leaves(self) -> None:
        """It answers no more; `keep` lets it answer again."""
        self._keeping.cancel()
        await self._kept.wait()

    def address(self, *, url: str | None = None) -> Address:
        return Address(url=url or self.server.url, key=str(self.keys))

    def key(self, name: str) -> str:
        """The seed of somebody, as a thief would have it."""
        return (self.keys / f"{name}{SUFFIX}").read_text()

    @asynccontextmanager
    async def member(self, name: str, *, url: str | None = None) -> AsyncIterator[Bus]:
        async with open_bus(self.address(url=url), name=name) as bus:
            yield bus

    @asynccontextmanager
    async def worker(self, agent: Agent, *, url: str | None = None) -> AsyncIterator[Worker]:
        async with (
            self.member(agent.name, url=url) as bus,
            serve(agent, bus, limits=SMALL, drain=0) as serving,
        ):
            yield serving

    async def declare(self, *agents: str) -> None:
        """What the keeper does for each agent that its settings name."""
        for agent in agents:
            await self.keeper.declare(agent, SMALL)

    async def know(self, *identities: Identity) -> None:
        """Let these in besides those who are known; who has a name already changes."""
        assert self.server.identities is not None
        new = {who.name: self._with_key(who) for who in identities}
        old = [who for who in self.server.identities if who.name not in new]
        await self.server.reload([*old, *new.values()])

    async def forget(self, name: str) -> None:
        assert self.server.identities is not None
        await self.server.reload([who for who in self.server.identities if who.name != name])

    def _with_key(self, who: Identity) -> Identity:
        if who.keys:
            return who
        return msgspec.structs.replace(who, keys=(make_key(self.keys / f"{who.name}{SUFFIX}").public,))


def agent(name: str, *roles: str) -> Identity:
    return Identity(name=name, kind=Kind.AGENT, roles=roles)


def guest(name: str) -> Identity:
    return Identity(name=name, kind=Kind.GUEST)


def person(name: str) -> Identity:
    return Identity(name=name, kind=Kind.PERSON)


@asynccontextmanager
async def society(*identities: Identity) -> AsyncIterator[Society]:
    """A broker with its keeper, who know these; the queues of the agents among them are declared."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        keys = folder / "keys"
        keys.mkdir()
        system = Identity(name=SYSTEM, kind=Kind.SYSTEM, keys=(make_key(keys / f"{SYSTEM}{SUFFIX}").public,))
        server = await stack.enter_async_context(open_server(folder / "server", identities=[system]))
        at = Address(url=server.url, key=str(keys / f"{SYSTEM}{SUFFIX}"))
        keeper = await stack.enter_async_context(open_bus(at, name="keeper"))
        await declare_shared(keeper.api, SMALL)
        known = Society(server, keys, keeper)
        tasks = await stack.enter_async_context(background_tasks())
        await tasks.start(known.keep)
        await known.know(*identities)
        agents = (Kind.AGENT, Kind.SUPERVISOR)
        await known.declare(*(who.name for who in identities if who.kind in agents))
        await known.declare(*(role for who in identities for role in who.roles))
        yield known
