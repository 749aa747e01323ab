"""The broker is told of somebody new while others ask it and send: nobody notices."""

from __future__ import annotations

import anyio
from society import Society, agent, person, society

from xnai.agents import Agent
from xnai.bus import Bus
from xnai.bus.background import background_tasks

PATIENCE = 60.0
RELOADS = 20


async def ask_on(bus: Bus) -> None:
    while True:
        await bus.api.stream_info("XNAI_DEAD")


async def flush_on(bus: Bus) -> None:
    while True:
        await bus.transport.flush()


async def call_on(bus: Bus) -> None:
    while True:
        assert await bus.call("maths.double", 2, int, timeout=PATIENCE) == 4


async def read_on(bus: Bus) -> None:
    id = await bus.send("maths.double", 2)
    while True:
        assert (await bus.task(id)).id == id


async def come_in(known: Society) -> None:
    for number in range(RELOADS):
        await known.know(person(f"guest-{number}"))


async def test_whoever_is_at_work_does_not_notice_that_others_are_let_in() -> None:
    maths = Agent("maths", description="Arithmetic", version="1.0.0")

    @maths.skill
    async def double(n: int) -> int:
        """Twice n."""
        return 2 * n

    async with (
        society(agent("maths"), person("alice")) as known,
        known.worker(maths),
        known.member("alice") as alice,
    ):
        with anyio.fail_after(PATIENCE):
            async with background_tasks() as tasks:
                tasks.start_soon(ask_on, known.keeper)
                tasks.start_soon(flush_on, alice)
                tasks.start_soon(call_on, alice)
                tasks.start_soon(read_on, alice)
                await come_in(known)
