"""Keepers lose their link too, when the broker dies or keys change: what is asked of them waits for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import anyio
import anyio.lowlevel
import pytest
from joining import member, open_link
from society import agent, person, society

from xnai.agents import Agent
from xnai.bus import Server, asking
from xnai.bus.asking import answering, ask_keeper
from xnai.bus.background import background_tasks
from xnai.protocol import Unavailable, subjects

PATIENCE = 30.0


async def answer(tokens: list[str], question: bytes) -> str:
    return f"to {tokens[-1]}"


async def test_a_question_waits_for_a_keeper_that_comes_back(server: Server) -> None:
    subject, heard = subjects.declaring("maths"), list[bytes]()
    async with member(server) as asker, member(server) as keeper:

        async def ask() -> None:
            heard.append(await ask_keeper(asker.transport, subject))

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask)
                await anyio.lowlevel.checkpoint()
                await asker.transport.flush()  # behind which stands that nobody answers
                async with answering(keeper.transport, subject, answer):
                    await keeper.transport.flush()
                    while not heard:
                        await anyio.lowlevel.checkpoint()
    assert heard == [b'"to maths"']


async def test_a_stream_that_cannot_be_read_now_goes_on_and_is_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asking, "_COMING_BACK", 0.0)
    go_on = anyio.Event()
    maths = Agent("maths", description="Arithmetic", version="1.0.0")

    @maths.skill
    async def count(n: int) -> AsyncIterator[int]:
        """The numbers below n."""
        yield 0
        await go_on.wait()
        for number in range(1, n):
            yield number

    async with (
        society(agent("maths"), person("alice")) as known,
        open_link(known.server) as link,
        known.worker(maths),
        known.member("alice", url=link.url) as alice,
    ):
        with anyio.fail_after(PATIENCE):
            async with aclosing(alice.stream("maths.count", 3, int, id="read-twice")) as chunks:
                assert await anext(chunks) == 0
                await known.keeper_leaves()
                link.cut()
                link.mend()
                with pytest.raises(Unavailable, match="No keeper answers"):
                    await anext(chunks)
            async with background_tasks() as tasks:
                await tasks.start(known.keep)
                go_on.set()
                again = alice.stream("maths.count", 3, int, id="read-twice")
                assert [chunk async for chunk in again] == [0, 1, 2]
