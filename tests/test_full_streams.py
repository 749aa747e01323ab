"""No room: a full queue and a full log refuse clearly, and nothing is heard that is not stored."""

from __future__ import annotations

import anyio
import pytest
from joining import listening, member, queue_of, until_queue_holds, worker

from xnai.agents import Agent, Context
from xnai.agents.testing import fresh_server
from xnai.bus import Bus, Limits, Server, ServerOptions
from xnai.bus.parser import Frame
from xnai.protocol import Busy, CallTimeout, DeadlineExceeded, TaskState, Unavailable
from xnai.protocol.subjects import log_stream, outcomes, read_event, stored_subject

KILOBYTE = 1024
SMALL_LOG = Limits(log=40 * KILOBYTE)

writer = Agent("writer", concurrency=4)


@writer.skill
async def write(size: int) -> str:
    return "x" * size


@writer.skill
async def tell(size: int, ctx: Context) -> str:
    try:
        await ctx.progress("x" * size)
    except Unavailable as error:
        return error.code
    return "told"


async def ended_in(bus: Bus) -> set[str]:
    """The ids of the tasks that have an outcome."""
    stored = bus.api.scan(log_stream("writer"), outcomes("writer"))
    return {read_event(outcome.subject).id async for outcome in stored}


async def send_all(bus: Bus, count: int, size: int) -> list[str]:
    return [await bus.send("writer.write", size, id=f"t{n}") for n in range(count)]


async def test_a_full_queue_refuses_clearly_and_stores_nothing(server: Server) -> None:
    with anyio.fail_after(15):
        async with member(server) as bus:
            await bus.declare("writer", Limits(queue=3))
            for n in range(3):
                await bus.send("writer.write", n)
            for _ in range(2):
                with pytest.raises(Busy, match="full") as caught:
                    await bus.send("writer.write", 3)
                assert caught.value.code == "busy"
            with pytest.raises(Busy):
                await bus.call("writer.write", 3, timeout=5)
            assert await queue_of(bus, "writer") == 3


async def test_a_queue_that_was_full_takes_tasks_again_once_some_are_done(server: Server) -> None:
    with anyio.fail_after(15):
        async with member(server) as bus:
            await bus.declare("writer", Limits(queue=3))
            await send_all(bus, 3, 1)
            async with worker(server, writer):
                await until_queue_holds(bus, "writer", 0)
                assert await bus.call("writer.write", 2, str) == "xx"


async def test_of_many_senders_at_once_as_many_as_there_is_room_for_are_told_yes(server: Server) -> None:
    stored: list[str] = []
    refused: list[int] = []

    async def send(bus: Bus, n: int) -> None:
        try:
            stored.append(await bus.send("writer.write", n % 10, id=f"t{n}"))
        except Busy:
            refused.append(n)

    with anyio.fail_after(20):
        async with member(server) as one, member(server, "second") as two:
            await one.declare("writer", Limits(queue=20))
            async with anyio.create_task_group() as tasks:
                for n in range(60):
                    tasks.start_soon(send, one if n % 2 else two, n)
            assert len(stored) == 20
            assert len(refused) == 40
            assert await queue_of(one, "writer") == 20
            async with worker(server, writer):
                await until_queue_holds(one, "writer", 0)
            ended = await ended_in(one)
            assert ended == set(stored)


async def test_a_refused_id_may_be_sent_again_later(server: Server) -> None:
    with anyio.fail_after(15):
        async with member(server) as bus:
            await bus.declare("writer", Limits(queue=1))
            await bus.send("writer.write", 1, id="first")
            with pytest.raises(Busy):
                await bus.send("writer.write", 2, id="second")
            async with worker(server, writer):
                await until_queue_holds(bus, "writer", 0)
                assert await bus.call("writer.write", 2, str, id="second") == "xx"


async def test_a_worker_whose_log_is_full_says_so_and_keeps_its_tasks(server: Server) -> None:
    with anyio.fail_after(20), listening("xnai.agents", "writer stops taking tasks") as said:
        async with member(server) as bus:
            await bus.declare("writer", SMALL_LOG)
            ids = await send_all(bus, 40, 2 * KILOBYTE)
            async with worker(server, writer, limits=SMALL_LOG):
                await said.heard.wait()
            states = [(await bus.task(id)).status.state for id in ids]
            assert TaskState.COMPLETED in states
            assert set(states) <= {TaskState.COMPLETED, TaskState.SUBMITTED, TaskState.WORKING}
            assert await queue_of(bus, "writer") >= states.count(TaskState.SUBMITTED)


async def test_nothing_is_heard_of_a_full_log_that_is_not_stored_in_it(server: Server) -> None:
    heard: list[str] = []

    def hear(frame: Frame) -> None:
        heard.append(stored_subject(frame.subject))

    with anyio.fail_after(20), listening("xnai.agents", "stops taking tasks") as said:
        async with member(server) as bus, bus.transport.listen("xnai.v1.live.>", hear):
            await bus.declare("writer", SMALL_LOG)
            await send_all(bus, 40, 2 * KILOBYTE)
            async with worker(server, writer, limits=SMALL_LOG):
                await said.heard.wait()
            await bus.transport.flush()
            stored = [
                found.subject async for found in bus.api.scan(log_stream("writer"), "xnai.v1.log.writer.>")
            ]
            assert heard == stored
            assert 0 < len(stored) < 40


async def test_tasks_of_a_full_log_are_done_once_there_is_room(server: Server) -> None:
    with anyio.fail_after(40), listening("xnai.agents", "stops taking tasks") as said:
        async with member(server) as bus:
            await bus.declare("writer", SMALL_LOG)
            await send_all(bus, 12, 3 * KILOBYTE)
            async with worker(server, writer, limits=SMALL_LOG):
                await said.heard.wait()
                ended = await ended_in(bus)
                await bus.api.purge(log_stream("writer"), "xnai.v1.log.writer.>")
                await until_queue_holds(bus, "writer", 0)
                later = await ended_in(bus)
            assert ended | later == {f"t{n}" for n in range(12)}
            assert not ended & later


async def test_a_call_whose_outcome_finds_no_room_is_never_answered_with_a_guess(server: Server) -> None:
    with anyio.fail_after(20):
        async with member(server) as bus:
            await bus.declare("writer", Limits(log=2 * KILOBYTE))
            async with worker(server, writer):
                with pytest.raises((CallTimeout, DeadlineExceeded)):
                    await bus.call("writer.write", 5 * KILOBYTE, str, timeout=1, id="t")
                assert (await bus.task("t")).status.state is not TaskState.COMPLETED


async def test_a_cancel_that_finds_no_room_says_so(server: Server) -> None:
    with anyio.fail_after(15):
        async with member(server) as bus:
            await bus.declare("writer", Limits(log=2 * KILOBYTE))
            id = await bus.send("writer.write", 1)
            with pytest.raises(Busy):
                await bus.cancel(id, reason="x" * 4 * KILOBYTE)


async def test_progress_that_finds_no_room_is_an_error_that_the_handler_sees(server: Server) -> None:
    with anyio.fail_after(15):
        async with member(server) as bus:
            await bus.declare("writer", Limits(log=4 * KILOBYTE))
            async with worker(server, writer):
                assert await bus.call("writer.tell", 8 * KILOBYTE, str) == "busy"
                assert await bus.call("writer.tell", 10, str) == "told"


async def test_a_server_without_room_for_an_agent_refuses_to_declare_it() -> None:
    with anyio.fail_after(15):
        async with fresh_server(ServerOptions(max_file_store=1 << 20)) as server, member(server) as bus:
            with pytest.raises(Busy, match="room") as caught:
                await bus.declare("writer")
            assert caught.value.code == "busy"
            small = Limits(log=1 << 16, blobs=1 << 16)
            await bus.declare("writer", small)
            async with worker(server, writer, limits=small):
                assert await bus.call("writer.write", 2, str) == "xx"


async def test_whoever_declares_first_chooses_the_limits(server: Server) -> None:
    with anyio.fail_after(15):
        async with member(server) as bus:
            await bus.declare("writer", Limits(queue=1))
            await bus.declare("writer", Limits(queue=100))
            await bus.send("writer.write", 1)
            with pytest.raises(Busy):
                await bus.send("writer.write", 1)
