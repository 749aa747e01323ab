"""Taking tasks: never more than there is credit for, urgent ones first, and again after whatever broke."""

from __future__ import annotations

import time

import anyio
import pytest
from joining import member, open_link, until_queue_holds, worker

from xnai.agents import Agent, Context
from xnai.bus import Bus, Limits, Server
from xnai.bus.pull import demand
from xnai.protocol import TaskState
from xnai.protocol.names import LANES
from xnai.protocol.subjects import task_stream


class Mill:
    """An agent that counts how many of its handlers are at work at once."""

    def __init__(self, concurrency: int) -> None:
        self.agent = Agent("mill", concurrency=concurrency)
        self.now = self.most = 0
        self.done: list[int] = []
        self.attempts: list[int] = []
        self.begun, self.open, self.stopped = anyio.Event(), anyio.Event(), anyio.Event()
        for skill in (self.grind, self.wait, self.block):
            self.agent.skill(skill)

    async def grind(self, n: int) -> int:
        self.now += 1
        self.most = max(self.most, self.now)
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        self.now -= 1
        self.done.append(n)
        return n

    async def wait(self, n: int, ctx: Context) -> int:
        self.attempts.append(ctx.attempt)
        self.begun.set()
        try:
            await self.open.wait()
        except anyio.get_cancelled_exc_class():
            self.stopped.set()
            raise
        self.done.append(n)
        return n

    async def block(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - that is the fault


async def taken(bus: Bus) -> int:
    """How many tasks the broker has handed out that are not settled."""
    return sum(
        [
            (await bus.api.ask(f"CONSUMER.INFO.{task_stream('mill')}.{lane}"))["num_ack_pending"]
            for lane in LANES
        ]
    )


async def outcome_of(bus: Bus, id: str) -> TaskState:
    async for event in bus.subscribe(id):
        if event.kind == "outcome":
            return (await bus.task(id)).status.state
    raise AssertionError(f"{id} has no outcome")


async def test_no_more_handlers_run_than_there_are_slots(server: Server) -> None:
    mill = Mill(concurrency=3)
    with anyio.fail_after(20):
        async with member(server) as bus:
            await bus.declare("mill")
            for n in range(60):
                await bus.send("mill.grind", n, lane=LANES[n % 3])
            async with worker(server, mill.agent):
                await until_queue_holds(bus, "mill", 0)
        assert sorted(mill.done) == list(range(60))
        assert 1 <= mill.most <= 3


@pytest.mark.parametrize("slots", [1, 2, 5])
async def test_no_more_tasks_are_held_than_the_slots_and_two(server: Server, slots: int) -> None:
    mill = Mill(concurrency=slots)
    with anyio.fail_after(20):
        async with member(server) as bus:
            await bus.declare("mill")
            for n in range(30):
                await bus.send("mill.wait", n, lane=LANES[n % 3])
            async with worker(server, mill.agent) as working:
                await mill.begun.wait()
                for _ in range(200):
                    assert await taken(bus) <= slots + 2
                    assert working.running <= slots
                mill.open.set()
                while len(mill.done) < 30:
                    assert working.running <= slots
                    await anyio.lowlevel.checkpoint()
        assert sorted(mill.done) == list(range(30))
        assert set(mill.attempts) <= {1, 2}


async def test_urgent_work_overtakes_what_waits_in_the_background(server: Server) -> None:
    mill = Mill(concurrency=1)
    with anyio.fail_after(20):
        async with worker(server, mill.agent), member(server) as bus:
            first = await bus.send("mill.wait", 1)
            await mill.begun.wait()
            for n in range(100, 150):
                await bus.send("mill.grind", n, lane="background")
            await bus.send("mill.grind", 7, lane="urgent")
            await bus.send("mill.grind", 8, lane="urgent")
            mill.open.set()
            assert await outcome_of(bus, first) is TaskState.COMPLETED
            await until_queue_holds(bus, "mill", 0)
        assert mill.done.index(7) <= 2
        assert mill.done.index(8) <= 6
        assert len(mill.done) == 53


async def test_background_work_is_done_while_urgent_work_keeps_coming(server: Server) -> None:
    mill = Mill(concurrency=1)
    with anyio.fail_after(20):
        async with member(server) as bus:
            await bus.declare("mill")
            for n in range(100):
                await bus.send("mill.grind", n, lane="urgent")
            for lane in ("normal", "background"):
                await bus.send("mill.grind", 1000, lane=lane)
            async with worker(server, mill.agent):
                await until_queue_holds(bus, "mill", 0)
        assert sorted(mill.done) == [*range(100), 1000, 1000]


async def test_a_backlog_is_done_once_each(server: Server) -> None:
    mill = Mill(concurrency=16)
    with anyio.fail_after(30):
        async with member(server) as bus:
            await bus.declare("mill")
            async with anyio.create_task_group() as tasks:
                for n in range(600):
                    tasks.start_soon(bus.send, "mill.grind", n)
            async with worker(server, mill.agent):
                await until_queue_holds(bus, "mill", 0)
        assert sorted(mill.done) == list(range(600))


async def test_two_workers_share_the_work(server: Server) -> None:
    one, two = Mill(concurrency=1), Mill(concurrency=1)
    with anyio.fail_after(20):
        async with worker(server, one.agent), worker(server, two.agent), member(server) as bus:
            for n in range(4):  # each may hold one more than it runs
                await bus.send("mill.wait", n)
            await one.begun.wait()
            await two.begun.wait()
            one.open.set()
            two.open.set()
            await until_queue_holds(bus, "mill", 0)
        assert sorted(one.done + two.done) == [0, 1, 2, 3]


async def test_open_pulls_say_whether_somebody_works(server: Server) -> None:
    mill = Mill(concurrency=2)
    with anyio.fail_after(20):
        async with member(server) as bus:
            await bus.declare("mill")
            assert (await demand(bus.api, "mill", "normal")).pulls == 0
            async with worker(server, mill.agent):
                assert (await demand(bus.api, "mill", "normal")).pulls == 3
            while (await demand(bus.api, "mill", "normal")).pulls:
                await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("lane", LANES)
async def test_a_consumer_deleted_behind_its_back_is_made_again(server: Server, lane: str) -> None:
    mill = Mill(concurrency=2)
    with anyio.fail_after(20):
        async with worker(server, mill.agent) as working, member(server) as bus:
            assert await bus.call("mill.grind", 1, int, lane=lane) == 1
            await bus.api.ask(f"CONSUMER.DELETE.{task_stream('mill')}.{lane}")
            assert await bus.call("mill.grind", 2, int, lane=lane) == 2
            assert working.healed >= 1


async def test_all_consumers_deleted_while_a_task_runs_do_not_disturb_it(server: Server) -> None:
    mill = Mill(concurrency=2)
    with anyio.fail_after(20):
        async with worker(server, mill.agent), member(server) as bus:
            id = await bus.send("mill.wait", 1)
            await mill.begun.wait()
            for lane in LANES:
                await bus.api.ask(f"CONSUMER.DELETE.{task_stream('mill')}.{lane}")
            assert await bus.call("mill.grind", 2, int) == 2
            mill.open.set()
            assert await outcome_of(bus, id) is TaskState.COMPLETED
            await until_queue_holds(bus, "mill", 0)
            assert mill.done.count(1) == 1


async def test_a_queue_deleted_behind_its_back_is_made_again(server: Server) -> None:
    mill = Mill(concurrency=2)
    with anyio.fail_after(20):
        async with worker(server, mill.agent), member(server) as bus:
            await bus.api.ask(f"STREAM.DELETE.{task_stream('mill')}")
            while not await bus.api.stream_names(task_stream("mill")):
                await anyio.lowlevel.checkpoint()
            assert await bus.call("mill.grind", 2, int) == 2


@pytest.mark.parametrize("kill", [False, True])
async def test_an_idle_worker_takes_tasks_again_after_a_restart_of_the_broker(
    server: Server, kill: bool
) -> None:
    mill = Mill(concurrency=2)
    with anyio.fail_after(10):  # well below the watchdog's patience: it does not wait to be told
        async with worker(server, mill.agent), member(server) as bus:
            assert await bus.call("mill.grind", 1, int) == 1
            await server.stop(kill=kill)
            await server.start()
            for lane in LANES:
                assert await bus.call("mill.grind", 2, int, lane=lane) == 2


async def test_a_busy_worker_takes_tasks_again_after_a_restart_of_the_broker(server: Server) -> None:
    mill = Mill(concurrency=2)
    with anyio.fail_after(20):
        async with worker(server, mill.agent), member(server) as bus:
            ids = [await bus.send("mill.wait", n) for n in range(6)]
            await mill.begun.wait()
            await server.stop()
            await server.start()
            mill.open.set()
            for id in ids:
                assert await outcome_of(bus, id) is TaskState.COMPLETED
            await until_queue_holds(bus, "mill", 0)


async def test_tasks_that_waited_through_a_restart_are_done(server: Server) -> None:
    mill = Mill(concurrency=2)
    with anyio.fail_after(20):
        async with member(server) as bus:
            await bus.declare("mill")
            ids = [await bus.send("mill.grind", n) for n in range(50)]
            await server.stop(kill=True)
            await server.start()
            async with worker(server, mill.agent):
                for id in ids:
                    assert await outcome_of(bus, id) is TaskState.COMPLETED
        assert sorted(mill.done) == list(range(50))


async def test_a_long_task_and_what_is_held_behind_it_are_kept_alive(server: Server) -> None:
    mill = Mill(concurrency=1)
    with anyio.fail_after(20):
        async with worker(server, mill.agent, limits=Limits(ack_wait=0.6)), member(server) as bus:
            long = await bus.send("mill.wait", 1)
            await mill.begun.wait()
            held = [await bus.send("mill.wait", 2, lane=lane) for lane in ("urgent", "background")]
            async for event in bus.subscribe(long):
                if event.kind == "working":  # it has run for a second, longer than the ack wait
                    mill.open.set()
            for id in held:
                assert await outcome_of(bus, id) is TaskState.COMPLETED
            await until_queue_holds(bus, "mill", 0)
        assert mill.done == [1, 2, 2]
        assert mill.attempts == [1, 1, 1]


async def test_a_worker_without_a_link_loses_its_task_to_another_and_stops_when_it_hears_of_it(
    server: Server,
) -> None:
    one, two = Mill(concurrency=1), Mill(concurrency=1)
    limits = Limits(ack_wait=1.0)
    two.open.set()
    with anyio.fail_after(25):
        async with (
            open_link(server) as link,
            member(server) as bus,
            worker(server, one.agent, limits=limits, url=link.url),
        ):
            id = await bus.send("mill.wait", 1)
            await one.begun.wait()
            link.cut()
            async with worker(server, two.agent, limits=limits):
                assert await outcome_of(bus, id) is TaskState.COMPLETED
                assert two.attempts == [2]
                link.mend()
                await one.stopped.wait()
            events = [event async for event in bus.subscribe(id)]
            assert [event.kind for event in events].count("outcome") == 1
            assert events[-1].facts.attempt == 2
            assert one.done == []


async def test_a_task_that_comes_again_while_it_still_runs_is_not_run_twice(server: Server) -> None:
    mill = Mill(concurrency=4)
    with anyio.fail_after(25):
        async with (
            open_link(server) as link,
            member(server) as bus,
            worker(server, mill.agent, limits=Limits(ack_wait=0.5), url=link.url),
        ):
            id = await bus.send("mill.wait", 1)
            await mill.begun.wait()
            link.cut()
            info = f"CONSUMER.INFO.{task_stream('mill')}.normal"
            delivered = (await bus.api.ask(info))["delivered"]["consumer_seq"]
            cut = time.monotonic()
            while time.monotonic() < cut + 0.8:  # until the ack wait has passed, of which nobody tells
                await bus.api.ask(info)
            link.mend()
            while (await bus.api.ask(info))["delivered"]["consumer_seq"] == delivered:  # it comes again
                await anyio.lowlevel.checkpoint()
            assert await bus.call("mill.grind", 5, int) == 5
            mill.open.set()
            assert await outcome_of(bus, id) is TaskState.COMPLETED
            await until_queue_holds(bus, "mill", 0)
        assert mill.attempts == [1]
        assert mill.done == [5, 1]
