"""A worker that lost its link and is back gets each task at once: what it had asked for is forgotten.

What is handed to a pull of a lost link comes again when the ack wait is over: once more than it was sent.
"""

from __future__ import annotations

import anyio
from joining import open_link
from society import SMALL, agent, person, society

from xnai.agents import Agent, serve
from xnai.protocol import subjects
from xnai.protocol.names import LANES

PATIENCE = 30.0


async def test_no_task_goes_to_a_pull_that_went_with_its_link() -> None:
    maths = Agent("maths", description="Arithmetic", version="1.0.0")

    @maths.skill
    async def double(n: int) -> int:
        """Twice n."""
        return 2 * n

    async with society(agent("maths"), person("alice")) as known, open_link(known.server) as link:
        async with (
            known.member("maths", url=link.url) as bus,
            serve(maths, bus, limits=SMALL, drain=0),
            known.member("alice") as alice,
        ):
            for n in range(3):
                assert await alice.call("maths.double", n, int, timeout=PATIENCE) == 2 * n
                back = anyio.Event()
                with bus.transport.when_back(back.set), anyio.fail_after(PATIENCE):
                    link.cut()
                    link.mend()
                    await back.wait()
                for lane in LANES:
                    assert await alice.call("maths.double", 4, int, timeout=PATIENCE, lane=lane) == 8
        stream = subjects.task_stream("maths")
        lanes = [await known.keeper.api.ask(f"CONSUMER.INFO.{stream}.{lane}") for lane in LANES]
        assert sum(info["delivered"]["consumer_seq"] for info in lanes) == 3 * (1 + len(LANES))
