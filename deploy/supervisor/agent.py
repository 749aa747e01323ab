"""The supervisor as an agent: asked over the bus, it starts what its own settings name, and nothing else."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import msgspec

from xnai.agents import Agent, Context, Reject, serve
from xnai.bus import Bus, Limits
from xnai.deploy.supervisor.fleet import Fleet
from xnai.deploy.supervisor.orders import Changes, Offer, Row, Scaling, Which
from xnai.deploy.supervisor.placing import choose, offer_of
from xnai.protocol.errors import InvalidAgent, XnaiError
from xnai.protocol.names import SUPERVISOR
from xnai.registry import Change, Registry, open_registry
from xnai.registry.roster import Kind

T = TypeVar("T")
_LOG, _QUEUE = 16 << 20, 1_000
_CONCURRENCY = 16
_SPAWNING = 300.0


def agent_name(folder: Path) -> str:
    """The name of the supervisor of this folder on this machine: the same each time."""
    place = f"{socket.gethostname()}\0{folder.resolve()}"
    return f"{SUPERVISOR}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"


def small(limits: Limits) -> Limits:
    """How much the streams of a supervisor may hold: few ask it for anything."""
    return msgspec.structs.replace(limits, log=_LOG, queue=_QUEUE)


@asynccontextmanager
async def open_supervisor(
    fleet: Fleet,
    bus: Bus,
    *,
    name: str,
    limits: Limits,
    say: Callable[[str], None],
    down: Callable[[], None],
) -> AsyncIterator[None]:
    """Answer for `fleet` while the context is open.

    `say` tells of other supervisors; `down` is called when somebody asks for the end.
    """
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(open_registry(bus, lease=limits.lease))
        stack.enter_context(registry.told(lambda change: _tell_end(change, name, say)))
        try:
            agent = _agent(fleet, name, roles=(SUPERVISOR,), registry=registry, down=down)
            await stack.enter_async_context(serve(agent, bus, limits=small(limits)))
        except InvalidAgent as error:  # another release of us understands the same words differently
            say(f"answers to {name} and not to {SUPERVISOR}: {error}")
            agent = _agent(fleet, name, roles=(), registry=registry, down=down)
            await stack.enter_async_context(serve(agent, bus, limits=small(limits)))
        yield


def _tell_end(change: Change, ourselves: str, say: Callable[[str], None]) -> None:
    """Say when another supervisor is gone, and how."""
    other = change.instance.presence
    if SUPERVISOR in other.roles and other.agent != ourselves and change.kind in (Kind.LEFT, Kind.LOST):
        how = "has left" if change.kind is Kind.LEFT else "is lost: its lease has ended"
        say(f"{other.agent} on {other.host}, process {other.pid}, {how}")


def _agent(
    fleet: Fleet, name: str, *, roles: Iterable[str], registry: Registry, down: Callable[[], None]
) -> Agent:
    agent = Agent(
        name,
        roles=roles,
        description="Keeps the agents of a folder running",
        version=version("xnai-agent-bus"),
        concurrency=_CONCURRENCY,
    )

    @agent.skill(name="list")
    async def rows() -> list[Row]:
        """The processes of all agents."""
        return await fleet.rows()

    @agent.skill
    async def offer(which: Which) -> Offer:
        """What one more process of an agent would mean here."""
        return offer_of(fleet, which.agent)

    @agent.skill
    async def spawn(which: Which, ctx: Context) -> list[Row]:
        """Start one more process of an agent: here, or where the role was asked, where the least is to do."""
        if ctx.task.agent == SUPERVISOR:
            place = await hopeless(lambda: choose(registry, SUPERVISOR, agent=which.agent, ctx=ctx))
            if place != name:
                return await ctx.call(f"{place}.spawn", which, list[Row], timeout=_SPAWNING)
        return await after(which.agent, lambda: fleet.scale(which.agent, fleet.group(which.agent).wanted + 1))

    @agent.skill
    async def stop(which: Which) -> list[Row]:
        """Stop all processes of an agent, until it is scaled or spawned again."""
        return await after(which.agent, lambda: fleet.scale(which.agent, 0))

    @agent.skill
    async def scale(to: Scaling) -> list[Row]:
        """Have so many processes of an agent: returns when the new ones take tasks and the old ones left."""
        return await after(to.agent, lambda: fleet.scale(to.agent, to.replicas))

    @agent.skill
    async def restart(which: Which) -> list[Row]:
        """New processes for an agent: each takes tasks before the old one leaves, unless it is alone."""
        return await after(which.agent, lambda: fleet.restart(which.agent))

    @agent.skill
    async def apply() -> Changes:
        """Read the settings again, and do what changed in them."""
        return await hopeless(fleet.reload)

    @agent.skill(name="down")
    async def take_down() -> None:
        """Stop all agents, then the broker if it is the stack's own, then this process."""
        down()

    async def after(name: str, do: Callable[[], Awaitable[None]]) -> list[Row]:
        await hopeless(do)
        return await fleet.rows(name)

    return agent


class Refused(Reject):
    """What a supervisor refuses, under its own code."""

    def __init__(self, error: XnaiError) -> None:
        super().__init__(str(error))
        self.code = error.code  # type: ignore[misc]  # the class says what a code is, the error which one


async def hopeless(do: Callable[[], Awaitable[T]]) -> T:
    """Do it once: asking the supervisor again for what it refused cannot help."""
    try:
        return await do()
    except XnaiError as error:
        raise Refused(error) from error
