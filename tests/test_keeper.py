"""The keeper: it ends what nobody else ends, and removes what is over; several may run."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest
from joining import member, queue_of, until_queue_holds, worker

from xnai.agents import Agent, Context
from xnai.bus import Bus, Limits, Server, keeper
from xnai.bus.background import background_tasks
from xnai.protocol import Envelope, TaskState, UnknownTask, subjects
from xnai.protocol.envelope import encode
from xnai.protocol.events import error_in
from xnai.protocol.names import LANES, SYSTEM

KILOBYTE = 1024

maths = Agent("maths")


@maths.skill
async def double(x: int) -> int:
    return 2 * x


@maths.skill
async def write(size: int) -> str:
    return "x" * size


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A keeper that gives nobody time, so that no test waits for it."""
    monkeypatch.setattr(keeper, "_SETTLED", 0.0)
    monkeypatch.setattr(keeper, "_AFTER_THE_OWNER", 0.0)


@asynccontextmanager
async def keepers(server: Server, count: int = 1, *, kept: float = 3600.0) -> AsyncIterator[None]:
    """So many keepers, each with a connection of its own, as in a process of its own."""

    async def run() -> None:
        async with member(server, "keeper") as bus:
            await keeper.keep(bus, interval=0.02, kept=kept)

    async with background_tasks() as tasks:
        for _ in range(count):
            tasks.start_soon(run)
        yield


async def send_overdue(bus: Bus, id: str, *, lane: str = "normal") -> None:
    """A task whose deadline has passed while it waited."""
    with anyio.fail_after(5):
        await bus.send("maths.double", 1, id=id, lane=lane, ttl=0.001)


async def outcomes(bus: Bus, agent: str = "maths") -> list[str]:
    """The subjects of all outcomes in the log of an agent."""
    log = bus.api.scan(subjects.log_stream(agent), subjects.outcomes(agent))
    return [stored.subject async for stored in log]


async def log_of(bus: Bus) -> list[str]:
    """The ids of all events in the log."""
    log = bus.api.scan(subjects.log_stream("maths"), subjects.log("maths"))
    return [subjects.read_event(stored.subject).id async for stored in log]


async def until(reached: Callable[[list[str]], bool], bus: Bus) -> None:
    """Read the log until it is so: the broker tells nobody what it has removed."""
    while not reached(await log_of(bus)):
        await anyio.lowlevel.checkpoint()


# What is overdue


@pytest.mark.usefixtures("hasty")
async def test_a_task_that_nobody_took_ends_at_its_deadline_in_every_lane(server: Server) -> None:
    with anyio.fail_after(15):
        async with member(server) as bus:
            await bus.declare("maths")
            for lane in LANES:
                await send_overdue(bus, lane, lane=lane)
            await bus.send("maths.double", 1, id="later")
            async with keepers(server):
                for lane in LANES:
                    events = [event async for event in bus.subscribe(lane)]
                    assert [(event.kind, event.writer) for event in events] == [("outcome", SYSTEM)]
                await until_queue_holds(bus, "maths", 1)
            task = await bus.task(LANES[0])
            assert task.status.state is TaskState.FAILED
            error = error_in(task.status)
            assert error is not None
            assert error.code == "deadline_exceeded"
            assert "maths.double" in error.message
            assert bytes(task.history[0].parts[0].data) == b"1"
            assert (await bus.task("later")).status.state is TaskState.SUBMITTED


@pytest.mark.usefixtures("hasty")
async def test_the_tasks_of_every_sender_and_agent_are_looked_after(server: Server) -> None:
    with anyio.fail_after(15):
        async with member(server, "anna") as anna, member(server, "bert") as bert:
            for agent in ("maths", "history"):
                await anna.declare(agent)
                for bus in (anna, bert):
                    await bus.send(f"{agent}.x", id=f"{agent}-{bus.name}", ttl=0.001)
            async with keepers(server):
                for agent in ("maths", "history"):
                    await until_queue_holds(anna, agent, 0)
            for agent in ("maths", "history"):
                for bus in (anna, bert):
                    assert (await bus.task(f"{agent}-{bus.name}")).status.state is TaskState.FAILED
                    with pytest.raises(UnknownTask):
                        await bus.task(f"{agent}-{'bert' if bus is anna else 'anna'}")


async def test_a_task_is_left_to_its_worker_and_its_owner_first(server: Server) -> None:
    with anyio.fail_after(15):
        async with member(server) as bus, member(server, "keeper") as own:
            await bus.declare("maths")
            await send_overdue(bus, "overdue")
            assert await keeper.Keeper(own, 3600.0).end_overdue("maths") == 0
            assert await queue_of(bus, "maths") == 1
            assert await outcomes(bus) == []


async def test_a_task_that_they_leave_alone_is_ended_in_time_all_the_same(server: Server) -> None:
    with anyio.fail_after(20):
        async with member(server) as bus, keepers(server):
            await bus.declare("maths")
            await send_overdue(bus, "overdue")
            assert [event.writer async for event in bus.subscribe("overdue")] == [SYSTEM]
            await until_queue_holds(bus, "maths", 0)


@pytest.mark.usefixtures("hasty")
async def test_a_deadline_that_comes_later_is_remembered(server: Server) -> None:
    with anyio.fail_after(15):
        async with member(server) as bus, keepers(server):
            await bus.declare("maths")
            for n, ttl in enumerate((0.6, 0.2, 0.4)):
                await bus.send("maths.double", n, id=f"t{n}", ttl=ttl)
            await until_queue_holds(bus, "maths", 0)
            assert await log_of(bus) == ["t1", "t2", "t0"]


@pytest.mark.usefixtures("hasty")
async def test_two_keepers_at_once_write_one_outcome(server: Server) -> None:
    ids = [f"t{n}" for n in range(60)]
    with anyio.fail_after(20):
        async with member(server) as bus:
            await bus.declare("maths")
            for id in ids:
                await send_overdue(bus, id)
            async with keepers(server, 2):
                await until_queue_holds(bus, "maths", 0)
                await bus.send("maths.double", 1, id="last", ttl=0.001)
                await until_queue_holds(bus, "maths", 0)
            ended = [subjects.read_event(subject).id for subject in await outcomes(bus)]
            assert sorted(ended) == sorted([*ids, "last"])


@pytest.mark.usefixtures("hasty")
async def test_a_worker_and_a_keeper_that_finish_at_once_leave_one_outcome(server: Server) -> None:
    agent = Agent("maths", concurrency=100)

    @agent.skill
    async def dawdle(ctx: Context) -> None:
        with anyio.CancelScope(shield=True):  # the answer comes just when the deadline does
            await anyio.sleep_until(anyio.current_time() + ctx.deadline - time.time())

    ids = [f"t{n}" for n in range(50)]
    with anyio.fail_after(20):
        async with member(server) as bus, worker(server, agent), keepers(server):
            for id in ids:
                await bus.send("maths.dawdle", id=id, ttl=0.4)
            for id in ids:
                last = [event async for event in bus.subscribe(id)][-1]
                assert (await bus.task(id)) == last.body
            await until_queue_holds(bus, "maths", 0)
            ended = [subjects.read_event(subject).id for subject in await outcomes(bus)]
            assert sorted(ended) == sorted(ids)


@pytest.mark.usefixtures("hasty")
async def test_a_task_that_has_ended_and_was_never_acknowledged_leaves_the_queue(server: Server) -> None:
    """What a worker leaves that dies between the outcome and the acknowledgement, and never comes back."""

    class Killed(Exception):
        pass

    async def die(point: str, task: Envelope) -> None:
        if point == "outcome published":
            raise Killed

    async def ask_until_killed(bus: Bus) -> None:
        async with worker(server, maths, probe=die):
            assert await bus.call("maths.double", 21, int, id="done", timeout=1.0) == 42
            await anyio.sleep_forever()

    with anyio.fail_after(20):
        async with member(server) as bus:
            with pytest.raises(BaseExceptionGroup):
                await ask_until_killed(bus)
            assert await queue_of(bus, "maths") == 1
            async with keepers(server):
                await until_queue_holds(bus, "maths", 0)
            assert (await bus.task("done")).status.state is TaskState.COMPLETED
            assert len(await outcomes(bus)) == 1


@pytest.mark.usefixtures("hasty")
async def test_bytes_that_are_no_task_are_left_to_the_worker_and_hold_nothing_up(server: Server) -> None:
    with anyio.fail_after(15):
        async with member(server) as bus:
            await bus.declare("maths")
            for junk in (b"", b"{", b"\xff", encode({"v": 99})):
                await bus.publisher.store(
                    f"{subjects.tasks('maths', lane='normal')[:-1]}tester.t.double", junk
                )
            await send_overdue(bus, "behind")
            async with keepers(server):
                events = [event async for event in bus.subscribe("behind")]
                assert events[-1].writer == SYSTEM
                await until_queue_holds(bus, "maths", 4)


@pytest.mark.usefixtures("hasty")
async def test_a_keeper_goes_on_over_a_restart_of_the_broker(server: Server) -> None:
    with anyio.fail_after(30):
        async with member(server) as bus, keepers(server):
            await bus.declare("maths")
            await send_overdue(bus, "before")
            assert [event.writer async for event in bus.subscribe("before")] == [SYSTEM]
            await bus.send("maths.double", 1, id="across", ttl=0.5)
            for kill in (True, False):
                await server.stop(kill=kill)
                await server.start()
            await send_overdue(bus, "after")
            for id in ("across", "after"):
                assert [event.writer async for event in bus.subscribe(id)] == [SYSTEM]
            await until_queue_holds(bus, "maths", 0)
            assert len(await outcomes(bus)) == 3


@pytest.mark.usefixtures("hasty")
async def test_a_keeper_goes_on_when_a_queue_was_deleted(server: Server) -> None:
    with anyio.fail_after(15):
        async with member(server) as bus, keepers(server):
            await bus.declare("maths")
            await bus.declare("history")
            await send_overdue(bus, "first")
            _ = [event async for event in bus.subscribe("first")]
            await bus.api.ask(f"STREAM.DELETE.{subjects.task_stream('history')}")
            await send_overdue(bus, "second")
            assert [event.writer async for event in bus.subscribe("second")] == [SYSTEM]


# What is over


async def test_the_log_of_a_task_that_ended_long_ago_is_removed(server: Server) -> None:
    with anyio.fail_after(15):
        async with worker(server, maths), member(server) as bus:
            for n in range(5):
                await bus.call("maths.double", n, id=f"t{n}")
            async with keepers(server, kept=0.0):
                await until(lambda ids: not ids, bus)
            with pytest.raises(UnknownTask, match="t0"):
                await bus.task("t0")
            assert await bus.call("maths.double", 3, int, id="new") == 6


async def test_the_log_of_a_task_that_has_not_ended_stays_however_old_it_is(server: Server) -> None:
    agent = Agent("maths")
    begun = anyio.Event()

    @agent.skill
    async def wait(ctx: Context) -> None:
        await ctx.progress("begun")
        begun.set()
        await anyio.sleep_forever()

    @agent.skill(name="double")
    async def double_it(x: int) -> int:
        return 2 * x

    with anyio.fail_after(15):
        async with worker(server, agent), member(server) as bus, member(server, "keeper") as own:
            await bus.send("maths.wait", id="at-work")
            await begun.wait()
            await bus.call("maths.double", 1, id="over")
            assert await keeper.Keeper(own, 0.0).remove_old("maths") == 1
            assert set(await log_of(bus)) == {"at-work"}


async def test_a_log_that_is_young_stays(server: Server) -> None:
    with anyio.fail_after(15):
        async with worker(server, maths), member(server) as bus, member(server, "keeper") as own:
            await bus.call("maths.double", 1, id="young")
            assert await keeper.Keeper(own, 60.0).remove_old("maths") == 0
            assert (await bus.task("young")).status.state is TaskState.COMPLETED


async def test_a_crowded_log_loses_its_oldest_tasks_and_keeps_the_newest(server: Server) -> None:
    limits = Limits(log=1024 * KILOBYTE)
    with anyio.fail_after(20):
        async with (
            member(server) as bus,
            worker(server, maths, limits=limits),
            member(server, "keeper") as own,
        ):
            keeps = keeper.Keeper(own, 3600.0)
            sent = 0
            while await used(bus) <= 0.8 * limits.log:
                assert await keeps.remove_old("maths") == 0
                for _ in range(50):
                    await bus.call("maths.write", 4 * KILOBYTE, id=f"t{sent}")
                    sent += 1
            removed = await keeps.remove_old("maths")
            assert 0 < removed < sent
            assert await used(bus) <= 0.7 * limits.log
            assert await log_of(bus) == [f"t{n}" for n in range(removed, sent)]
            assert await keeps.remove_old("maths") == 0


async def used(bus: Bus) -> int:
    """Bytes that the log takes."""
    size: int = (await bus.api.stream_info(subjects.log_stream("maths")))["state"]["bytes"]
    return size


async def test_two_keepers_that_clean_at_once_do_each_other_no_harm(server: Server) -> None:
    with anyio.fail_after(15):
        async with worker(server, maths), member(server) as bus:
            for n in range(40):
                await bus.send("maths.double", n)
            await until_queue_holds(bus, "maths", 0)
            async with keepers(server, 3, kept=0.0):
                await until(lambda ids: not ids, bus)
            assert await bus.call("maths.double", 3, int) == 6


async def test_an_agent_without_a_log_has_nothing_to_remove(server: Server) -> None:
    with anyio.fail_after(15):
        async with member(server, "keeper") as own:
            keeps = keeper.Keeper(own, 0.0)
            assert await keeps.remove_old("nobody") == 0
            assert await keeps.end_overdue("nobody") == 0
