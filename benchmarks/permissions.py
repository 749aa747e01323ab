"""What it costs that the broker knows its members, and checks who may what."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import msgspec

from benchmarks.harness import Figure, Program, Size, driven, figure, in_turns
from benchmarks.stages import OURS, our_caller
from benchmarks.tasks import IN_FLIGHT, throughput
from xnai.bus import Limits, Server, ServerOptions, open_bus
from xnai.bus.accounts import MEMBERS, accounts
from xnai.bus.keeper_service import KeeperService
from xnai.bus.keys import SUFFIX, make_key
from xnai.bus.locating import Address
from xnai.bus.permissions import Identity, Kind
from xnai.bus.streams import declare_shared
from xnai.protocol.names import SYSTEM

_WARM_UP = 500


class _Trusting(Server):
    """Knows everybody by their keys, in the same accounts, and lets them do whatever they want."""

    def _config(self) -> str:
        told = accounts(self.identities or ())
        table = msgspec.json.decode(told.removeprefix("accounts: "))
        for user in table[MEMBERS]["users"]:
            del user["permissions"]
        return super()._config().replace(told, f"accounts: {msgspec.json.encode(table).decode()}")


@asynccontextmanager
async def _known_caller(kind: type[Server] = Server) -> AsyncIterator[Program]:
    """A caller and a worker whom the broker knows by their keys."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        keys = folder / "keys"
        keys.mkdir()
        kinds = {SYSTEM: Kind.SYSTEM, "echo": Kind.AGENT, "caller": Kind.PERSON}
        identities = [
            Identity(name=name, kind=kind, keys=(make_key(keys / f"{name}{SUFFIX}").public,))
            for name, kind in kinds.items()
        ]
        server = kind(folder / "server", ServerOptions(), identities)
        stack.push_async_callback(_stop, server)
        await server.start()
        at = Address(url=server.url, key=str(keys))
        keeper = await stack.enter_async_context(open_bus(at.as_system(), name="keeper"))
        await declare_shared(keeper.api, Limits())
        await stack.enter_async_context(KeeperService(keeper.transport, Limits()).open())
        await keeper.declare("echo")
        await stack.enter_async_context(driven(OURS, "echo", server.url, str(keys)))
        yield await stack.enter_async_context(driven(OURS, "caller", server.url, str(keys)))


async def _stop(server: Server) -> None:
    with anyio.CancelScope(shield=True):
        await server.stop()


async def _compare(name: str, ours: Program, floor: Program, size: Size, *, bar: float) -> Figure:
    for caller in (ours, floor):
        await caller.ask("throughput", _WARM_UP, IN_FLIGHT)
    pairs = await in_turns(throughput(ours, size), throughput(floor, size), 2 * size.slices)
    return figure(name, pairs, unit="tasks/s", bar=bar)


async def permissions(size: Size) -> Figure:
    """Tasks per second where each may do what it is there for. The floor: the same without any limits."""
    async with _known_caller() as confined, _known_caller(_Trusting) as trusted:
        return await _compare("permissions", confined, trusted, size, bar=0.97)


async def two_accounts(size: Size) -> Figure:
    """Tasks per second where the streams are in an account of their own. The floor: one token for all."""
    async with _known_caller() as known, our_caller() as (trusted, _):
        return await _compare("two_accounts", known, trusted, size, bar=0.6)
