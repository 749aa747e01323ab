"""Leaving: a worker finishes what it can, hands back the rest, and the next one goes on at once."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import aclosing
from itertools import pairwise

import anyio
import anyio.abc
import pytest
from joining import listening, member, open_link, until_queue_holds, worker

from xnai.agents import Agent, Backoff, Context
from xnai.bus import Bus, Limits, Server
from xnai.protocol import Event, TaskState

AT_ONCE = Backoff(first=0.01, most=0.01)


class Shift:
    """One process of the agent `crew`: it waits in its handlers until it is let go."""

    def __init__(self, *, concurrency: int = 4) -> None:
        self.agent = Agent("crew", concurrency=concurrency)
        self.open = anyio.Event()
        self.steps = 1
        self.begun = anyio.Event()
        self.attempts: list[int] = []
        self.done: list[int] = []
        self.leaving, self.left = anyio.Event(), anyio.Event()
        for skill in (self.work, self.count, self.ask, self.hurry):
            self.agent.skill(backoff=AT_ONCE)(skill)

    async def work(self, n: int, ctx: Context) -> int:
        self.attempts.append(ctx.attempt)
        self.begun.set()
        await self.open.wait()
        self.done.append(n)
        return n

    async def hurry(self, n: int) -> int:
        self.done.append(n)
        return n

    async def count(self, n: int, ctx: Context) -> AsyncIterator[int]:
        self.attempts.append(ctx.attempt)
        for i in range(n):
            yield i
            if i == self.steps:
                self.begun.set()
                await self.open.wait()

    async def ask(self, ctx: Context) -> str:
        self.attempts.append(ctx.attempt)
        self.begun.set()
        answer: str = await ctx.call("child.wait", None, str, timeout=600)
        return answer

    async def serve(
        self,
        server: Server,
        drain: float,
        *,
        task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        async with worker(server, self.agent, drain=drain):
            task_status.started()
            await self.leaving.wait()
        self.left.set()

    async def leave(self) -> None:
        """Begin to leave, and return once it has left."""
        self.leaving.set()
        await self.left.wait()


async def story(bus: Bus, id: str) -> list[Event]:
    return [event async for event in bus.subscribe(id)]


async def test_a_worker_that_leaves_waits_for_what_runs(server: Server) -> None:
    shift = Shift()
    with anyio.fail_after(15):
        async with member(server) as bus, anyio.create_task_group() as tasks:
            await tasks.start(shift.serve, server, 10.0)
            id = await bus.send("crew.work", 7)
            await shift.begun.wait()
            shift.leaving.set()
            shift.open.set()
            await shift.left.wait()
            assert [event.kind for event in await story(bus, id)] == ["outcome"]
            assert (await bus.task(id)).status.state is TaskState.COMPLETED


async def test_what_comes_while_a_worker_leaves_is_done_by_another(server: Server) -> None:
    first, second = Shift(concurrency=1), Shift()
    with anyio.fail_after(9):
        async with member(server) as bus, anyio.create_task_group() as tasks:
            await tasks.start(first.serve, server, 10.0)
            await bus.send("crew.work", 1)
            await first.begun.wait()
            first.leaving.set()
            await tasks.start(second.serve, server, 0.0)
            for n in range(10, 30):
                assert await bus.call("crew.hurry", n, int) == n
            first.open.set()
            await first.left.wait()
            assert first.done == [1]
            assert second.done == list(range(10, 30))
            second.leaving.set()


async def test_what_is_not_done_in_time_is_handed_back_and_goes_on_elsewhere_as_the_same_attempt(
    server: Server,
) -> None:
    first, second = Shift(), Shift()
    with anyio.fail_after(9):  # within the ack wait: nobody waited for it to pass
        async with member(server) as bus, anyio.create_task_group() as tasks:
            await tasks.start(first.serve, server, 0.0)
            id = await bus.send("crew.work", 7)
            await first.begun.wait()
            await first.leave()
            second.open.set()
            await tasks.start(second.serve, server, 0.0)
            events = await story(bus, id)
            assert [event.kind for event in events if event.kind != "working"] == ["returned", "outcome"]
            assert events[-1].facts.attempt == 1
            assert first.attempts == second.attempts == [1]
            assert first.done == []
            second.leaving.set()


async def test_a_waiting_worker_gets_what_another_hands_back(server: Server) -> None:
    first, second = Shift(concurrency=1), Shift(concurrency=1)
    second.open.set()
    with anyio.fail_after(9):
        async with member(server) as bus, anyio.create_task_group() as tasks:
            await tasks.start(first.serve, server, 0.0)
            id = await bus.send("crew.work", 7)
            await first.begun.wait()
            await tasks.start(second.serve, server, 0.0)
            await first.leave()
            await story(bus, id)
            assert second.done == [7]
            second.leaving.set()


async def test_a_task_may_be_handed_back_again_and_again_without_spending_attempts(server: Server) -> None:
    last = Shift()
    last.open.set()
    with anyio.fail_after(25):
        async with member(server) as bus, anyio.create_task_group() as tasks:
            await bus.declare("crew")
            id = await bus.send("crew.work", 7)
            for _ in range(6):  # more often than a task has attempts
                shift = Shift()
                await tasks.start(shift.serve, server, 0.0)
                await shift.begun.wait()
                assert shift.attempts[0] <= 2
                await shift.leave()
            await tasks.start(last.serve, server, 0.0)
            await story(bus, id)
            assert (await bus.task(id)).status.state is TaskState.COMPLETED
            last.leaving.set()


async def test_tasks_that_are_held_and_never_ran_are_given_back(server: Server) -> None:
    first, second = Shift(concurrency=1), Shift()
    second.open.set()
    with anyio.fail_after(9):
        async with member(server) as bus, anyio.create_task_group() as tasks:
            await tasks.start(first.serve, server, 0.0)
            busy = await bus.send("crew.work", 1)
            await first.begun.wait()
            held = [
                await bus.send("crew.hurry", n, lane=lane) for n, lane in ((2, "urgent"), (3, "background"))
            ]
            await tasks.start(second.serve, server, 0.0)
            await first.leave()
            for id in (busy, *held):
                assert (await story(bus, id))[-1].kind == "outcome"
            assert sorted(second.done) == [1, 2, 3]
            assert first.done == []
            second.leaving.set()


async def test_nothing_is_lost_and_nothing_runs_twice_while_workers_come_and_go(server: Server) -> None:
    shifts = [Shift(concurrency=8) for _ in range(5)]
    answers: list[int] = []

    async def ask(bus: Bus, n: int) -> None:
        answers.append(await bus.call("crew.hurry", n, int))

    async def change(tasks: anyio.abc.TaskGroup) -> None:
        for old, new in pairwise(shifts):
            await tasks.start(new.serve, server, 5.0)
            await old.leave()

    with anyio.fail_after(40):
        async with member(server) as bus, anyio.create_task_group() as tasks:
            await tasks.start(shifts[0].serve, server, 5.0)
            async with anyio.create_task_group() as work:
                for n in range(400):
                    work.start_soon(ask, bus, n)
                work.start_soon(change, tasks)
            await until_queue_holds(bus, "crew", 0)
            shifts[-1].leaving.set()
        assert sorted(answers) == list(range(400))
        assert sorted(n for shift in shifts for n in shift.done) == list(range(400))


async def test_a_reader_of_a_stream_does_not_notice_that_it_was_handed_over(server: Server) -> None:
    first, second = Shift(), Shift()
    second.open.set()
    with anyio.fail_after(9):
        async with member(server) as bus, anyio.create_task_group() as tasks:
            await tasks.start(first.serve, server, 0.0)
            async with aclosing(bus.stream("crew.count", 5, int)) as chunks:
                seen = [await anext(chunks), await anext(chunks)]
                await first.begun.wait()
                await first.leave()
                await tasks.start(second.serve, server, 0.0)
                seen += [chunk async for chunk in chunks]
            assert seen == [0, 1, 2, 3, 4]
            assert first.attempts == second.attempts == [1]
            second.leaving.set()


async def test_a_hand_back_does_not_cancel_sub_tasks_and_the_successor_joins_them(server: Server) -> None:
    first, second, child = Shift(), Shift(), Agent("child")
    begun, release, stopped = anyio.Event(), anyio.Event(), anyio.Event()
    asked: list[str] = []

    @child.skill
    async def wait(ctx: Context) -> str:
        asked.append(ctx.task.id)
        begun.set()
        try:
            await release.wait()
        except anyio.get_cancelled_exc_class():
            stopped.set()
            raise
        return "done"

    with anyio.fail_after(15):
        async with member(server) as bus, worker(server, child), anyio.create_task_group() as tasks:
            await tasks.start(first.serve, server, 0.0)
            id = await bus.send("crew.ask")
            await begun.wait()
            await first.leave()
            await tasks.start(second.serve, server, 0.0)
            await second.begun.wait()
            assert not stopped.is_set()
            release.set()
            await story(bus, id)
            assert (await bus.task(id)).status.state is TaskState.COMPLETED
            assert len(asked) == 1
            assert second.attempts == [1]
            second.leaving.set()


async def test_a_successor_finds_the_sub_task_that_ended_in_between(server: Server) -> None:
    first, second, child = Shift(), Shift(), Agent("child")
    begun, release = anyio.Event(), anyio.Event()
    asked: list[str] = []

    @child.skill
    async def wait(ctx: Context) -> str:
        asked.append(ctx.task.id)
        begun.set()
        await release.wait()
        return "done"

    with anyio.fail_after(15):
        async with (
            member(server) as bus,
            member(server, "crew") as crew,
            worker(server, child),
            anyio.create_task_group() as tasks,
        ):
            await tasks.start(first.serve, server, 0.0)
            id = await bus.send("crew.ask")
            await begun.wait()
            await first.leave()
            release.set()
            await story(crew, asked[0])
            await tasks.start(second.serve, server, 0.0)
            await story(bus, id)
            assert (await bus.task(id)).status.state is TaskState.COMPLETED
            assert len(asked) == 1
            second.leaving.set()


async def test_a_thread_is_left_behind_and_its_task_goes_on_elsewhere(server: Server) -> None:
    first, second = Agent("crew"), Agent("crew")
    begun, release = threading.Event(), threading.Event()

    @first.skill
    def work() -> str:
        begun.set()
        release.wait(15)
        return "late"

    @second.skill(name="work")
    def work_again() -> str:
        return "well"

    with anyio.fail_after(9), listening("xnai.agents", "its result is dropped") as said:
        async with member(server) as bus:
            async with worker(server, first):
                id = await bus.send("crew.work")
                assert await anyio.to_thread.run_sync(begun.wait, 5)
            async with worker(server, second):
                await story(bus, id)
                assert (await bus.task(id)).artifacts[0].parts[0].text == "well"
            release.set()
            await said.heard.wait()


async def test_a_handler_that_will_not_stop_does_not_keep_the_worker(server: Server) -> None:
    first, second = Agent("crew"), Shift()
    second.open.set()
    begun, release = anyio.Event(), anyio.Event()
    tries: list[int] = []

    @first.skill
    async def work(n: int) -> int:
        begun.set()
        for _ in range(3):
            try:
                await release.wait()
            except anyio.get_cancelled_exc_class():
                tries.append(1)
        return n

    with anyio.fail_after(15):
        async with member(server) as bus:
            async with worker(server, first):
                id = await bus.send("crew.work", 7)
                await begun.wait()
            async with anyio.create_task_group() as tasks:
                await tasks.start(second.serve, server, 0.0)
                await story(bus, id)
                assert (await bus.task(id)).status.state is TaskState.COMPLETED
                second.leaving.set()


async def test_a_worker_whose_surroundings_are_cancelled_hands_back_what_runs(server: Server) -> None:
    first, second = Shift(), Shift()
    second.open.set()
    with anyio.fail_after(9):
        async with member(server) as bus:
            async with anyio.create_task_group() as tasks:
                await tasks.start(first.serve, server, 0.0)
                id = await bus.send("crew.work", 7)
                await first.begun.wait()
                tasks.cancel_scope.cancel()
            async with anyio.create_task_group() as tasks:
                await tasks.start(second.serve, server, 0.0)
                events = await story(bus, id)
                assert [event.kind for event in events if event.kind != "working"] == ["returned", "outcome"]
                assert second.attempts == [1]
                second.leaving.set()


async def test_a_worker_whose_surroundings_are_cancelled_lets_what_runs_end(server: Server) -> None:
    first = Shift()
    with anyio.fail_after(9):
        async with member(server) as bus:
            async with anyio.create_task_group() as tasks:
                await tasks.start(first.serve, server, 5.0)
                id = await bus.send("crew.work", 7)
                await first.begun.wait()
                tasks.cancel_scope.cancel()
                first.open.set()
            assert first.done == [7]
            assert [event.kind for event in await story(bus, id)] == ["outcome"]


async def test_a_worker_leaves_though_its_link_is_down(server: Server) -> None:
    shift = Shift()
    with anyio.fail_after(25):
        async with open_link(server) as link, member(server) as bus:
            async with worker(server, shift.agent, url=link.url):
                id = await bus.send("crew.work", 7)
                await shift.begun.wait()
                link.cut()
            assert (await bus.task(id)).status.state in (TaskState.SUBMITTED, TaskState.WORKING)


async def test_an_error_around_a_worker_is_passed_on_as_it_is(server: Server) -> None:
    shift = Shift()
    with anyio.fail_after(15):
        with pytest.raises(ZeroDivisionError):
            async with worker(server, shift.agent):
                raise ZeroDivisionError
        async with member(server) as bus, worker(server, shift.agent, limits=Limits()):
            assert await bus.call("crew.hurry", 1, int) == 1
