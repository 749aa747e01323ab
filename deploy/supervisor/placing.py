"""Where a process goes that nobody has given a place: to the supervisor with the least to do."""

from __future__ import annotations

import os

import anyio

from xnai.agents import Context
from xnai.deploy.supervisor.fleet import Fleet
from xnai.deploy.supervisor.orders import Offer
from xnai.protocol.errors import InvalidArgument, XnaiError
from xnai.registry import Registry

_PATIENCE = 3.0  # seconds that a supervisor has to make an offer


def offer_of(fleet: Fleet, agent: str) -> Offer:
    """What this supervisor can offer for a process of an agent."""
    group = fleet.groups.get(agent)
    processors = os.cpu_count() or 1
    running = sum(place.running for each in fleet.groups.values() for place in each.places)
    return Offer(
        takes=group is not None and not (group.table.alone and group.wanted > 0),
        processes=running / processors,
        load=os.getloadavg()[0] / processors,
    )


async def choose(registry: Registry, role: str, *, agent: str, ctx: Context) -> str:
    """The supervisor with the best offer of those that are alive.

    Raises:
        InvalidArgument: none of them has such an agent in its settings, or room for one more of it.
    """
    offers: dict[str, Offer] = {}

    async def ask(name: str) -> None:
        try:
            offers[name] = await ctx.call(f"{name}.offer", {"agent": agent}, Offer, timeout=_PATIENCE)
        except XnaiError:  # it has just died: the others are left
            return

    async with anyio.create_task_group() as tasks:
        for name in {instance.presence.agent for instance in registry.find(role=role)}:
            tasks.start_soon(ask, name)
    names = [name for name, offer in offers.items() if offer.takes]
    if not names:
        raise InvalidArgument(f"None of {len(offers)} supervisors has a place for {agent}.")
    return min(names, key=lambda name: (offers[name].processes, offers[name].load, name))
