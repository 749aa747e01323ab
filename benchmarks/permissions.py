"""What it costs that the broker checks who may what."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness import Figure, Program, Size, driven, figure, in_turns
from benchmarks.stages import OURS, our_caller
from benchmarks.tasks import IN_FLIGHT, throughput
from xnai.bus import Limits, open_bus, open_server
from xnai.bus.keeper_service import KeeperService
from xnai.bus.keys import SUFFIX, make_key
from xnai.bus.locating import Address
from xnai.bus.permissions import Identity, Kind
from xnai.bus.streams import declare_shared
from xnai.protocol.names import SYSTEM

_WARM_UP = 500


@asynccontextmanager
async def _known_caller() -> AsyncIterator[Program]:
    """A caller and a worker whom the broker knows by their keys, and confines."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        keys = folder / "keys"
        keys.mkdir()
        kinds = {SYSTEM: Kind.SYSTEM, "echo": Kind.AGENT, "caller": Kind.PERSON}
        identities = [
            Identity(name=name, kind=kind, keys=(make_key(keys / f"{name}{SUFFIX}").public,))
            for name, kind in kinds.items()
        ]
        server = await stack.enter_async_context(open_server(folder / "server", identities=identities))
        at = Address(url=server.url, key=str(keys))
        keeper = await stack.enter_async_context(open_bus(at.as_system(), name="keeper"))
        await declare_shared(keeper.api, Limits())
        await stack.enter_async_context(KeeperService(keeper.transport, Limits()).open())
        await keeper.declare("echo")
        await stack.enter_async_context(driven(OURS, "echo", server.url, str(keys)))
        yield await stack.enter_async_context(driven(OURS, "caller", server.url, str(keys)))


async def permissions(size: Size) -> Figure:
    """Tasks per second where the broker knows and confines everybody. The floor: one token for all."""
    async with _known_caller() as known, our_caller() as (trusted, _):
        for caller in (known, trusted):
            await caller.ask("throughput", _WARM_UP, IN_FLIGHT)
        pairs = await in_turns(throughput(known, size), throughput(trusted, size), size.slices)
    return figure("permissions", pairs, unit="tasks/s", bar=0.65)
